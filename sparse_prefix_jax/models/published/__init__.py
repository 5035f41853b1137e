"""Other families: a small model of each for trials, and published ones."""

from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.published.diagonal import DIAGONAL_PRESETS
from sparse_prefix_jax.models.published.kimi_linear import KIMI_LINEAR_PRESETS
from sparse_prefix_jax.models.published.mamba2 import MAMBA2_PRESETS
from sparse_prefix_jax.models.published.qwen import QWEN_PRESETS
from sparse_prefix_jax.models.published.side_by_side import SIDE_BY_SIDE_PRESETS

PUBLISHED: dict[str, ModelConfig] = {
  **QWEN_PRESETS,
  **MAMBA2_PRESETS,
  **SIDE_BY_SIDE_PRESETS,
  **DIAGONAL_PRESETS,
  **KIMI_LINEAR_PRESETS,
}
"""Their configurations, by name."""
