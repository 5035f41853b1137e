"""Linear attention with a decay per head (Mamba-2, simple GLA, RetNet)."""

from sparse_prefix_jax.kernels.linear_attention.api import (
  linear_attention as linear_attention,
)
from sparse_prefix_jax.kernels.linear_attention.api import (
  linear_attention_core as linear_attention_core,
)
from sparse_prefix_jax.kernels.linear_attention.api import (
  linear_attention_step as linear_attention_step,
)
