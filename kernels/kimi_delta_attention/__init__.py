"""The delta rule with a decay per key channel (Kimi Delta Attention)."""

from sparse_prefix_jax.kernels.kimi_delta_attention.api import (
  kimi_delta_attention as kimi_delta_attention,
)
from sparse_prefix_jax.kernels.kimi_delta_attention.api import (
  kimi_delta_attention_core as kimi_delta_attention_core,
)
from sparse_prefix_jax.kernels.kimi_delta_attention.api import (
  kimi_delta_attention_step as kimi_delta_attention_step,
)
