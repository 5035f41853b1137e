"""The Qwen families: mixtures of experts under gated hybrids."""

from typing import Any

from sparse_prefix_jax.layers import SwiGLUConfig
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.published.common import FULL, SMALL
from sparse_prefix_jax.models.qwen_form import (
  ATTENTION,
  GATED_DELTA_NET,
  groups_of_layers,
  hybrid,
  mixture,
)

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
  "numerics": SMALL,
}

QWEN_PRESETS: dict[str, ModelConfig] = {
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
    numerics=FULL,
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
    numerics=FULL,
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
    numerics=FULL,
  ),
}
"""They take their sizes from the config.json that was published with them."""
