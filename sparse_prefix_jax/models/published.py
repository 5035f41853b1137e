"""Other families: a small model of each for tests, and published ones."""

from typing import Any

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  ExpertsConfig,
  Mamba2Config,
  Norm,
  Numerics,
  ParallelConfig,
  Sublayer,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.qwen_form import (
  ATTENTION,
  GATED_DELTA_NET,
  groups_of_layers,
  hybrid,
  mixture,
)

_SMALL = Numerics(ladder=(1, 2, 4), max_length=4096)
_SMALL_LAYERS: dict[str, Any] = {
  "vocab_size": 512,
  "width": 64,
  "layer_types": (GATED_DELTA_NET, ATTENTION),
  "key_heads": 2,
  "value_heads": 4,
  "key_width": 32,
  "value_width": 32,
  "heads": 4,
  "kv_heads": 2,
  "head_width": 32,
  "rotary_width": 16,
  "numerics": _SMALL,
}
_PUBLISHED = Numerics(dtype="bfloat16", max_length=262144)

_NORM = Norm(centred=False, eps=1e-5)


def _mamba2(
  vocab_size: int,
  width: int,
  layers: int,
  sub: Mamba2Config,
  numerics: Numerics,
) -> ModelConfig:
  """A Mamba-2 model: one branch per layer."""
  return ModelConfig(
    vocab_size=vocab_size,
    width=width,
    branches=(Branch(sub, pre=_NORM),) * layers,
    final_norm=_NORM,
    numerics=numerics,
  )


def _granite(
  width: int,
  subs: tuple[Sublayer, Sublayer, Sublayer],
  *,
  layers: str = "mmmmmammmmmmmmmammmmmmmmmammmmmmmmmammmm",
  vocab_size: int = 100352,
  logits_scaling: float,
  numerics: Numerics = _PUBLISHED,
) -> ModelConfig:
  """A Granite-4 hybrid: of each layer m or a, a mixer and a feed-forward."""
  mamba, attention, feed_forward = (
    Branch(sub, pre=_NORM, scale=0.22) for sub in subs
  )
  mixers = {"m": mamba, "a": attention}
  return ModelConfig(
    vocab_size=vocab_size,
    width=width,
    branches=tuple(
      branch for kind in layers for branch in (mixers[kind], feed_forward)
    ),
    final_norm=_NORM,
    embedding_scale=12.0,
    logits_scale=1 / logits_scaling,
    numerics=numerics,
  )


def _nope(
  heads: int, kv_heads: int, head_width: int, scale: float
) -> AttentionConfig:
  """Attention that tells no positions apart."""
  return AttentionConfig(
    heads=heads,
    kv_heads=kv_heads,
    head_width=head_width,
    rotary_width=None,
    gate=False,
    head_norm=False,
    scale=scale,
  )


def _experts(
  experts: int, chosen: int, hidden: int, shared: int
) -> ParallelConfig:
  """Experts, and SwiGLU of every token beside them."""
  chosen_ones = ExpertsConfig(experts=experts, chosen=chosen, hidden=hidden)
  return ParallelConfig((chosen_ones, SwiGLUConfig(hidden=shared)))


PUBLISHED: dict[str, ModelConfig] = {
  "qwen3_5_moe_tiny": hybrid(
    **_SMALL_LAYERS,
    feed_forwards=(mixture(experts=8, chosen=3, hidden=32, shared=64),) * 2,
  ),
  "qwen3_6_35b_a3b": hybrid(
    vocab_size=248320,
    width=2048,
    layer_types=groups_of_layers(10),
    feed_forwards=(mixture(experts=256, chosen=8, hidden=512, shared=512),)
    * 40,
    value_heads=32,
    heads=16,
    tie_embeddings=False,
    numerics=_PUBLISHED,
  ),
  "qwen3_5_397b_a17b": hybrid(
    vocab_size=248320,
    width=4096,
    layer_types=groups_of_layers(15),
    feed_forwards=(mixture(experts=512, chosen=10, hidden=1024, shared=1024),)
    * 60,
    value_heads=64,
    heads=32,
    tie_embeddings=False,
    numerics=_PUBLISHED,
  ),
  "qwen3_next_tiny": hybrid(
    **_SMALL_LAYERS,
    feed_forwards=(
      mixture(experts=16, chosen=2, hidden=32, shared=64, normalized=False),
      SwiGLUConfig(hidden=128),
    ),
  ),
  "qwen3_next_80b_a3b": hybrid(
    vocab_size=151936,
    width=2048,
    layer_types=groups_of_layers(12),
    feed_forwards=(mixture(experts=512, chosen=10, hidden=512, shared=512),)
    * 48,
    value_heads=32,
    heads=16,
    tie_embeddings=False,
    numerics=_PUBLISHED,
  ),
  "mamba2_tiny": _mamba2(
    512,
    64,
    2,
    Mamba2Config(heads=4, groups=2, head_width=32, state_width=32, bias=True),
    _SMALL,
  ),
  "mamba2_2_7b": _mamba2(
    50288,
    2560,
    64,
    Mamba2Config(heads=80, groups=1, head_width=64, state_width=128),
    _PUBLISHED,
  ),
  "granite_hybrid_tiny": _granite(
    64,
    (
      Mamba2Config(heads=4, groups=1, head_width=32, state_width=64),
      _nope(4, 2, 32, 1 / 64),
      _experts(8, 2, 32, 128),
    ),
    layers="ma",
    vocab_size=512,
    logits_scaling=6.0,
    numerics=_SMALL,
  ),
  "granite_4_h_micro": _granite(
    2048,
    (
      Mamba2Config(heads=64, groups=1, head_width=64, state_width=128),
      _nope(32, 8, 64, 1 / 64),
      SwiGLUConfig(hidden=8192),
    ),
    logits_scaling=8.0,
  ),
  "granite_4_h_tiny": _granite(
    1536,
    (
      Mamba2Config(heads=48, groups=1, head_width=64, state_width=128),
      _nope(12, 4, 128, 1 / 128),
      _experts(64, 6, 512, 1024),
    ),
    logits_scaling=6.0,
  ),
  "granite_4_h_small": _granite(
    4096,
    (
      Mamba2Config(heads=128, groups=1, head_width=64, state_width=128),
      _nope(32, 8, 128, 1 / 128),
      _experts(72, 10, 768, 1536),
    ),
    logits_scaling=16.0,
  ),
}
"""They take their sizes from the config.json that was published with them."""
