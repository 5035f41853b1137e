"""Attention over pages of one chunk each, reduced in absolute order."""

from sparse_prefix_jax.kernels.lattice_attention.api import (
  BLOCK_PAGES as BLOCK_PAGES,
)
from sparse_prefix_jax.kernels.lattice_attention.api import (
  lattice_attention as lattice_attention,
)
from sparse_prefix_jax.kernels.lattice_attention.api import (
  lattice_attention_core as lattice_attention_core,
)
from sparse_prefix_jax.kernels.lattice_attention.api import (
  lattice_attention_step as lattice_attention_step,
)
