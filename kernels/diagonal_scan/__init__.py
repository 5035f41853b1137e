"""A recurrence of independent channels (RG-LRU; Mamba with inputs B, C)."""

from sparse_prefix_jax.kernels.diagonal_scan.api import (
  diagonal_scan as diagonal_scan,
)
from sparse_prefix_jax.kernels.diagonal_scan.api import (
  diagonal_scan_core as diagonal_scan_core,
)
from sparse_prefix_jax.kernels.diagonal_scan.api import (
  diagonal_scan_step as diagonal_scan_step,
)
