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
from sparse_prefix_jax.kernels.lattice_attention.int8_api import (
  lattice_attention_int8 as lattice_attention_int8,
)
from sparse_prefix_jax.kernels.lattice_attention.int8_api import (
  lattice_attention_int8_step as lattice_attention_int8_step,
)
from sparse_prefix_jax.kernels.lattice_attention.int8_pages import (
  Int8Pages as Int8Pages,
)
from sparse_prefix_jax.kernels.lattice_attention.int8_pages import (
  RunningPages as RunningPages,
)
from sparse_prefix_jax.kernels.lattice_attention.latent_api import (
  latent_attention as latent_attention,
)
from sparse_prefix_jax.kernels.lattice_attention.latent_api import (
  latent_attention_step as latent_attention_step,
)
