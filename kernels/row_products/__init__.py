"""Products of the rows of a step with weights that are read once."""

from sparse_prefix_jax.kernels.row_products.api import (
  row_products as row_products,
)
