"""A family of one's own: leaky sums, attention and SwiGLU."""

from typing import Any

from sparse_prefix_jax import ModelConfig
from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  Norm,
  Numerics,
  SwiGLUConfig,
)
from tests.toy_layer import LeakySumConfig


def read(fields: dict[str, Any], numerics: Numerics) -> ModelConfig:
  """Makes the configuration that the fields of a config.json ask for."""
  norm = Norm(centred=False, eps=fields["norm_eps"])
  scale = fields["residual_multiplier"]
  heads = fields["num_heads"]
  mixers = {
    "s": LeakySumConfig(channels=fields["channels"]),
    "*": AttentionConfig(
      heads=heads,
      kv_heads=heads // 2,
      head_width=fields["head_dim"],
      rotary_width=fields["head_dim"] // 2,
    ),
    "-": SwiGLUConfig(hidden=fields["intermediate_size"]),
  }
  return ModelConfig(
    vocab_size=fields["vocab_size"],
    width=fields["hidden_size"],
    branches=tuple(
      Branch(mixers[letter], pre=norm, scale=scale)
      for letter in fields["pattern"]
    ),
    final_norm=norm,
    embedding_scale=fields["embedding_multiplier"],
    numerics=numerics,
  )
