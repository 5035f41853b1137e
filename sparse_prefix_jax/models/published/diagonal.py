"""Hybrids of small states: a small model of each family, and published ones."""

from typing import Any

import ml_dtypes

from sparse_prefix_jax.layers import (
  Branch,
  ExpertsConfig,
  MambaConfig,
  Norm,
  RGLRUConfig,
  ShortConvConfig,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.published.common import (
  SMALL,
  alternating,
  plain_attention,
)


def _mamba(
  vocab_size: int, width: int, layers: int, sub: MambaConfig, **others: Any
) -> ModelConfig:
  """A Mamba model: one branch per layer."""
  kinds = {"m": (Branch(sub, pre=Norm(centred=False, eps=1e-5)),)}
  return alternating(vocab_size, width, "m" * layers, kinds, **others)


def _jamba(
  vocab_size: int,
  width: int,
  layers: str,
  mamba: MambaConfig,
  attention: tuple[int, int, int],
  experts: ExpertsConfig,
  **others: Any,
) -> ModelConfig:
  """A Jamba: layers m and a are SwiGLU behind the mixer, M and A experts."""
  norm = Norm(centred=False)
  recurrent = Branch(mamba, pre=norm)
  attending = Branch(plain_attention(*attention), pre=norm)
  dense = Branch(SwiGLUConfig(hidden=experts.hidden), pre=norm)
  sparse = Branch(experts, pre=norm)
  kinds = {
    "m": (recurrent, dense),
    "M": (recurrent, sparse),
    "a": (attending, dense),
    "A": (attending, sparse),
  }
  return alternating(vocab_size, width, layers, kinds, **others)


def _gemma(
  vocab_size: int,
  width: int,
  layers: str,
  lru: RGLRUConfig,
  attention: tuple[int, int, int],
  window: int,
  hidden: int,
  **others: Any,
) -> ModelConfig:
  """A RecurrentGemma: of each layer r or a, a mixer and a gated gelu."""
  norm = Norm()
  attending = plain_attention(
    *attention,
    rotary_width=attention[2] // 2,
    rope_theta=1e4,
    attention_window=window,
    out_bias=True,
  )
  feed_forward = Branch(
    SwiGLUConfig(hidden=hidden, activation="gelu_tanh", bias=True), pre=norm
  )
  kinds = {
    "r": (Branch(lru, pre=norm), feed_forward),
    "a": (Branch(attending, pre=norm), feed_forward),
  }
  return alternating(
    vocab_size,
    width,
    layers,
    kinds,
    embedding_scale=float(ml_dtypes.bfloat16(width**0.5)),
    logits_cap=30.0,
    **others,
  )


def _lfm2(
  vocab_size: int,
  width: int,
  layers: str,
  attention: tuple[int, int, int],
  hidden: int,
  **others: Any,
) -> ModelConfig:
  """An LFM2: of each layer c or a, a convolution or attention, and SwiGLU."""
  norm = Norm(centred=False, eps=1e-5)
  attending = plain_attention(
    *attention,
    rotary_width=attention[2],
    rope_theta=1e6,
    eps=1e-5,
    head_norm=True,
    centred=False,
  )
  feed_forward = Branch(SwiGLUConfig(hidden=hidden), pre=norm)
  kinds = {
    "c": (Branch(ShortConvConfig(channels=width), pre=norm), feed_forward),
    "a": (Branch(attending, pre=norm), feed_forward),
  }
  return alternating(vocab_size, width, layers, kinds, **others)


DIAGONAL_PRESETS: dict[str, ModelConfig] = {
  "mamba_tiny": _mamba(
    512,
    64,
    2,
    MambaConfig(inner_width=128, state_width=16, rank=4),
    numerics=SMALL,
  ),
  "mamba1_2_8b": _mamba(
    50280,
    2560,
    64,
    MambaConfig(inner_width=5120, state_width=16, rank=160),
  ),
  "falcon_mamba_tiny": _mamba(
    512,
    64,
    2,
    MambaConfig(inner_width=128, state_width=16, rank=4, part_norm="plain"),
    numerics=SMALL,
  ),
  "falcon_mamba_7b": _mamba(
    65024,
    4096,
    64,
    MambaConfig(inner_width=8192, state_width=16, rank=256, part_norm="plain"),
    tie_embeddings=False,
  ),
  "jamba_tiny": _jamba(
    512,
    64,
    "Ma",
    MambaConfig(inner_width=128, state_width=16, rank=4, part_norm="weighted"),
    (4, 2, 32),
    ExpertsConfig(experts=8, chosen=2, hidden=64, normalized=False),
    numerics=SMALL,
  ),
  "jamba_52b_a12b": _jamba(
    65536,
    4096,
    "mMmMaMmM" * 4,
    MambaConfig(
      inner_width=8192, state_width=16, rank=256, part_norm="weighted"
    ),
    (32, 8, 128),
    ExpertsConfig(experts=16, chosen=2, hidden=14336, normalized=False),
    tie_embeddings=False,
  ),
  "recurrent_gemma_tiny": _gemma(
    512,
    64,
    "ra",
    RGLRUConfig(channels=128, heads=4),
    (4, 2, 32),
    40,
    128,
    numerics=SMALL,
  ),
  "recurrent_gemma_2b": _gemma(
    256000,
    2560,
    "rra" * 8 + "rr",
    RGLRUConfig(channels=2560, heads=10),
    (10, 1, 256),
    2048,
    7680,
  ),
  "lfm2_tiny": _lfm2(512, 64, "ca", (4, 2, 32), 128, numerics=SMALL),
  "lfm2_1_2b": _lfm2(65536, 2048, "ccaccaccacacacac", (32, 8, 64), 8192),
}
"""They take their sizes from the config.json that was published with them."""
