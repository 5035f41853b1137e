"""The short causal convolution before a recurrence, with a carried window."""

from sparse_prefix_jax.kernels.causal_conv1d.api import (
  causal_conv1d as causal_conv1d,
)
from sparse_prefix_jax.kernels.causal_conv1d.api import (
  causal_conv1d_core as causal_conv1d_core,
)
from sparse_prefix_jax.kernels.causal_conv1d.api import (
  causal_conv1d_step as causal_conv1d_step,
)
