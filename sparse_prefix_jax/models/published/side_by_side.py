"""Falcon-H1, OLMo-hybrid, MiniMax: small models, and published ones."""

from typing import Any

from sparse_prefix_jax.layers import (
  Branch,
  ExpertsConfig,
  GatedDeltaNetConfig,
  LightningConfig,
  Mamba2Config,
  Norm,
  ParallelConfig,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.published.common import (
  SMALL,
  alternating,
  plain_attention,
)


def _falcon(
  vocab_size: int,
  width: int,
  layers: int,
  pair: ParallelConfig,
  hidden: int,
  **others: Any,
) -> ModelConfig:
  """A Falcon-H1 model: of each layer two mixers in one branch, and SwiGLU."""
  norm = Norm(centred=False, eps=1e-5)
  feed_forward = SwiGLUConfig(hidden=hidden, gate_scale=0.8838834764831844)
  layer = (
    Branch(pair, pre=norm),
    Branch(feed_forward, pre=norm, scale=0.5859375),
  )
  scales = {"embedding_scale": 5.656854249492381, "logits_scale": 0.0390625}
  kinds = {"p": layer}
  return alternating(vocab_size, width, "p" * layers, kinds, **scales, **others)


def _pair(
  mamba: tuple[int, int, int], heads: tuple[int, int, int], rotary_width: int
) -> ParallelConfig:
  """Mamba-2 (heads, their width, that of states) beside attention, scaled."""
  parts = (0.3535533905932738, 0.25, 0.3535533905932738, 0.5)
  recurrent = Mamba2Config(
    heads=mamba[0],
    groups=1,
    head_width=mamba[1],
    state_width=mamba[2],
    norm="none",
    part_scales=(*parts, parts[0]),
  )
  attention = plain_attention(
    *heads, rotary_width=rotary_width, rope_theta=1e11, key_scale=0.390625
  )
  return ParallelConfig(
    (recurrent, attention),
    in_scales=(1.25, 1.0),
    out_scales=(0.23570226039551587, 0.9375),
  )


def _olmo(
  vocab_size: int,
  width: int,
  layers: str,
  recurrent: GatedDeltaNetConfig,
  attention: tuple[int, int, int],
  hidden: int,
  **others: Any,
) -> ModelConfig:
  """An OLMo-hybrid: layers d with norms in front, a with norms behind."""
  norm = Norm(centred=False)
  attending = plain_attention(*attention, row_norm=True, centred=False)
  feed_forward = SwiGLUConfig(hidden=hidden)
  kinds = {
    "d": (Branch(recurrent, pre=norm), Branch(feed_forward, pre=norm)),
    "a": (
      Branch(attending, pre=None, post=norm),
      Branch(feed_forward, pre=None, post=norm),
    ),
  }
  return alternating(
    vocab_size, width, layers, kinds, tie_embeddings=False, **others
  )


def _minimax(
  vocab_size: int,
  width: int,
  layers: str,
  attention: tuple[int, int, int],
  experts: ExpertsConfig,
  **others: Any,
) -> ModelConfig:
  """A MiniMax: of each layer l or a, a mixer and experts, residuals normed."""
  norm, heads = Norm(centred=False, eps=1e-5), attention[0]
  lightning = LightningConfig(heads=heads, head_width=attention[2])
  # As the model was published; the form of file that transformers reads rotates
  # whole heads, and so does `load_pretrained`.
  attending = plain_attention(*attention, rotary_width=attention[2] // 2)
  first, second, mixture = (
    Branch(sub, pre=norm, keep=3.5565588200778455, residual="normed")
    for sub in (lightning, attending, experts)
  )
  kinds = {"l": (first, mixture), "a": (second, mixture)}
  return alternating(
    vocab_size, width, layers, kinds, tie_embeddings=False, **others
  )


SIDE_BY_SIDE_PRESETS: dict[str, ModelConfig] = {
  "falcon_h1_tiny": _falcon(
    512,
    64,
    1,
    _pair((4, 32, 64), (4, 2, 32), 32),
    128,
    numerics=SMALL,
  ),
  "falcon_h1_0_5b": _falcon(
    32784,
    1024,
    36,
    _pair((24, 64, 128), (8, 2, 64), 64),
    2048,
    tie_embeddings=False,
  ),
  "olmo_hybrid_tiny": _olmo(
    512,
    64,
    "da",
    GatedDeltaNetConfig(
      key_heads=2,
      value_heads=2,
      key_width=32,
      value_width=64,
      eps=1e-5,
      beta_scale=2.0,
    ),
    (4, 2, 32),
    128,
    numerics=SMALL,
  ),
  "olmo_hybrid_7b": _olmo(
    100352,
    3840,
    "ddda" * 8,
    GatedDeltaNetConfig(
      key_heads=30,
      value_heads=30,
      key_width=96,
      value_width=192,
      eps=1e-5,
      beta_scale=2.0,
    ),
    (30, 30, 128),
    11008,
  ),
  "minimax_tiny": _minimax(
    512,
    64,
    "la",
    (4, 2, 32),
    ExpertsConfig(experts=8, chosen=2, hidden=32),
    numerics=SMALL,
  ),
  "minimax_text_01": _minimax(
    200064,
    6144,
    "llllllla" * 10,
    (64, 8, 128),
    ExpertsConfig(experts=32, chosen=2, hidden=9216),
  ),
}
"""They take their sizes from the config.json that was published with them."""
