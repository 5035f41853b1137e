"""The gated delta rule (Gated DeltaNet): packed prefill, one-token step."""

from sparse_prefix_jax.kernels.gated_delta_rule.api import (
  gated_delta_rule as gated_delta_rule,
)
from sparse_prefix_jax.kernels.gated_delta_rule.api import (
  gated_delta_rule_core as gated_delta_rule_core,
)
from sparse_prefix_jax.kernels.gated_delta_rule.api import (
  gated_delta_rule_projected_step as gated_delta_rule_projected_step,
)
from sparse_prefix_jax.kernels.gated_delta_rule.api import (
  gated_delta_rule_step as gated_delta_rule_step,
)
from sparse_prefix_jax.kernels.gated_delta_rule.projected_xla import (
  project_heads as project_heads,
)
