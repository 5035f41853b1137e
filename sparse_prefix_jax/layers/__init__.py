"""How a state evolves: layers with the carry passed in and out."""

from sparse_prefix_jax.layers.attention import GatedAttention as GatedAttention
from sparse_prefix_jax.layers.attention import PagePools as PagePools
from sparse_prefix_jax.layers.captured_scan import (
  CapturedScan as CapturedScan,
)
from sparse_prefix_jax.layers.captured_scan import (
  scan_with_capture as scan_with_capture,
)
from sparse_prefix_jax.layers.gated_delta_net import (
  GatedDeltaNet as GatedDeltaNet,
)
from sparse_prefix_jax.layers.gated_delta_net import StatePools as StatePools
from sparse_prefix_jax.layers.mixer import Mixer as Mixer
from sparse_prefix_jax.layers.swiglu import SwiGLU as SwiGLU
