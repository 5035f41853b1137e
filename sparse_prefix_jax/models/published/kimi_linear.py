"""Kimi Linear: a small model, and the published one."""

from typing import Any

from sparse_prefix_jax.layers import (
  Branch,
  ExpertsConfig,
  KimiDeltaAttentionConfig,
  LatentAttentionConfig,
  Norm,
  ParallelConfig,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.published.common import SMALL, alternating


def _kimi(
  vocab_size: int,
  width: int,
  layers: str,
  delta: KimiDeltaAttentionConfig,
  latent: LatentAttentionConfig,
  experts: ExpertsConfig,
  hidden: int,
  **others: Any,
) -> ModelConfig:
  """A Kimi Linear: layers d with states, l with latents; the first is dense."""
  norm = Norm(centred=False, eps=1e-5)
  shared = SwiGLUConfig(hidden=experts.hidden)
  dense, mixture, first, second = (
    Branch(sub, pre=norm)
    for sub in (
      SwiGLUConfig(hidden=hidden),
      ParallelConfig((experts, shared)),
      delta,
      latent,
    )
  )
  kinds = {"D": (first, dense), "d": (first, mixture), "l": (second, mixture)}
  return alternating(
    vocab_size, width, layers, kinds, tie_embeddings=False, **others
  )


KIMI_LINEAR_PRESETS: dict[str, ModelConfig] = {
  "kimi_linear_tiny": _kimi(
    512,
    64,
    "Dl",
    KimiDeltaAttentionConfig(heads=2, head_width=32),
    LatentAttentionConfig(
      heads=4, latent_width=48, key_width=32, shared_width=16, value_width=32
    ),
    ExpertsConfig(experts=8, chosen=2, hidden=64, score="sigmoid", factor=2.0),
    128,
    numerics=SMALL,
  ),
  "kimi_linear_48b_a3b": _kimi(
    163840,
    2304,
    "Dddl" + "dddl" * 5 + "ddl",
    KimiDeltaAttentionConfig(heads=32, head_width=128),
    LatentAttentionConfig(
      heads=32,
      latent_width=512,
      key_width=128,
      shared_width=64,
      value_width=128,
    ),
    ExpertsConfig(
      experts=256, chosen=8, hidden=1024, score="sigmoid", factor=2.446
    ),
    9216,
  ),
}
"""They take their sizes from the config.json that was published with it."""
