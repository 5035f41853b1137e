"""How a state evolves: layers with the carry passed in and out."""

from sparse_prefix_jax.layers.attention import (
  AttentionConfig as AttentionConfig,
)
from sparse_prefix_jax.layers.attention import GatedAttention as GatedAttention
from sparse_prefix_jax.layers.attention_pages import KeysValues as KeysValues
from sparse_prefix_jax.layers.branch import Branch as Branch
from sparse_prefix_jax.layers.branch import ResidualBranch as ResidualBranch
from sparse_prefix_jax.layers.captured_scan import (
  CapturedScan as CapturedScan,
)
from sparse_prefix_jax.layers.captured_scan import (
  scan_with_capture as scan_with_capture,
)
from sparse_prefix_jax.layers.experts import Experts as Experts
from sparse_prefix_jax.layers.experts import ExpertsConfig as ExpertsConfig
from sparse_prefix_jax.layers.explicit import ExplicitCarry as ExplicitCarry
from sparse_prefix_jax.layers.explicit import ExplicitModule as ExplicitModule
from sparse_prefix_jax.layers.explicit import ExplicitScan as ExplicitScan
from sparse_prefix_jax.layers.gated_delta_net import (
  GatedDeltaNet as GatedDeltaNet,
)
from sparse_prefix_jax.layers.gated_delta_net import (
  GatedDeltaNetConfig as GatedDeltaNetConfig,
)
from sparse_prefix_jax.layers.gated_delta_net import (
  GatedDeltaNetState as GatedDeltaNetState,
)
from sparse_prefix_jax.layers.kimi_delta_attention import (
  KimiDeltaAttention as KimiDeltaAttention,
)
from sparse_prefix_jax.layers.kimi_delta_attention import (
  KimiDeltaAttentionConfig as KimiDeltaAttentionConfig,
)
from sparse_prefix_jax.layers.kimi_delta_attention import (
  KimiDeltaAttentionState as KimiDeltaAttentionState,
)
from sparse_prefix_jax.layers.latent_attention import (
  LatentAttention as LatentAttention,
)
from sparse_prefix_jax.layers.latent_attention import (
  LatentAttentionConfig as LatentAttentionConfig,
)
from sparse_prefix_jax.layers.latent_attention import Latents as Latents
from sparse_prefix_jax.layers.lightning import Lightning as Lightning
from sparse_prefix_jax.layers.lightning import (
  LightningConfig as LightningConfig,
)
from sparse_prefix_jax.layers.lightning import LightningState as LightningState
from sparse_prefix_jax.layers.mamba import Mamba as Mamba
from sparse_prefix_jax.layers.mamba import MambaConfig as MambaConfig
from sparse_prefix_jax.layers.mamba import MambaState as MambaState
from sparse_prefix_jax.layers.mamba2 import Mamba2 as Mamba2
from sparse_prefix_jax.layers.mamba2 import Mamba2Config as Mamba2Config
from sparse_prefix_jax.layers.mamba2 import Mamba2State as Mamba2State
from sparse_prefix_jax.layers.mlp import MLP as MLP
from sparse_prefix_jax.layers.mlp import MLPConfig as MLPConfig
from sparse_prefix_jax.layers.normalization import Norm as Norm
from sparse_prefix_jax.layers.numerics import Numerics as Numerics
from sparse_prefix_jax.layers.parallel import ParallelConfig as ParallelConfig
from sparse_prefix_jax.layers.rg_lru import RGLRU as RGLRU
from sparse_prefix_jax.layers.rg_lru import RGLRUConfig as RGLRUConfig
from sparse_prefix_jax.layers.rg_lru import RGLRUState as RGLRUState
from sparse_prefix_jax.layers.shared_expert import SharedExpert as SharedExpert
from sparse_prefix_jax.layers.shared_expert import (
  SharedExpertConfig as SharedExpertConfig,
)
from sparse_prefix_jax.layers.short_conv import ShortConv as ShortConv
from sparse_prefix_jax.layers.short_conv import (
  ShortConvConfig as ShortConvConfig,
)
from sparse_prefix_jax.layers.short_conv import (
  ShortConvState as ShortConvState,
)
from sparse_prefix_jax.layers.sublayer import BranchPools as BranchPools
from sparse_prefix_jax.layers.sublayer import Flops as Flops
from sparse_prefix_jax.layers.sublayer import Sublayer as Sublayer
from sparse_prefix_jax.layers.sublayer import SublayerModule as SublayerModule
from sparse_prefix_jax.layers.swiglu import SwiGLU as SwiGLU
from sparse_prefix_jax.layers.swiglu import SwiGLUConfig as SwiGLUConfig
