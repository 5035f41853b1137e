"""latent_attention: lattice attention whose keys and values are one latent.

Multi-head latent attention (MLA) keeps of a token one row that all heads share:
a compressed part, which is its value, and channels that only keys have. With
the projections of keys and values absorbed into queries and outputs, it is
attention with one key head, whose values are the first channels of the keys.
There are kernels for GPU and TPU; elsewhere it runs in XLA operations.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.checks import (
  as_precision,
  check_axes,
  check_floating,
  check_pool,
  check_shapes,
)
from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.lattice_attention import (
  latent_mosaic_gpu,
  latent_mosaic_tpu,
  pages_vjp,
)
from sparse_prefix_jax.kernels.lattice_attention.api import (
  BLOCK_PAGES,
  check_attention,
)
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
from sparse_prefix_jax.kernels.slot_checks import check_pages, check_tokens

_PRECISION = lax.Precision.HIGHEST
LATENT_IMPLEMENTATIONS = (
  latent_mosaic_gpu.IMPLEMENTATION,
  latent_mosaic_tpu.IMPLEMENTATION,
  plain(over_pools(pages_vjp.attend_chunks, 1)),
)
LATENT_STEP_IMPLEMENTATIONS = (
  latent_mosaic_gpu.STEP_IMPLEMENTATION,
  latent_mosaic_tpu.STEP_IMPLEMENTATION,
  plain(over_pools(pages_vjp.attend_rows, 1)),
)


def latent_attention(
  q: Float[Array, "n c h k"],
  latent: Float[Array, "n c hkv k"],
  latent_pages: Float[Array, "p c hkv k"],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  value_width: int,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[Float32[Array, "n c h v"], Float[Array, "p c hkv k"]]:
  """softmax(q L^T) L[:, :v] over the latents L of the tokens [0, t].

  `lattice_attention` of pages that hold a latent per token: all pages of the
  call are written before any chunk attends, and blocks are reduced from page 0
  on. Differentiable in everything but integers.

  Args:
    q: Queries, scaled by the caller, in the space of latents.
    latent: Latents of the chunks; hkv is 1 where all heads share one.
    latent_pages: Pages of latents, donated.
    chunks: Position and page-table row of each chunk; length 0 writes nothing.
    page_table: Page of each chunk of each request, in order; entries past the
      last used page may be any valid page.
    value_width: Leading channels v of a latent that are its value.
    precision: Precision of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and latent_pages. Rows past a chunk's length are unspecified.

  Raises:
    ValueError: If arrays do not belong together, values are wider than latents,
      or no implementation fits.

  Example:
    >>> chunks = Chunks(*jnp.array([[-1], [-3], [2], [0], [0]]))  # two tokens
    >>> latent = jnp.array([1.0, 5.0, 3.0, 5.0]).reshape(1, 2, 1, 2)
    >>> out, pages = latent_attention(
    ...   jnp.zeros((1, 2, 1, 2)), latent, jnp.zeros((1, 2, 1, 2)), chunks,
    ...   jnp.zeros((1, 8), jnp.int32), value_width=1
    ... )
    >>> out[0, :, 0].tolist(), pages[0, 1, 0].tolist()
    ([[1.0], [2.0]], [3.0, 5.0])
  """
  operation = "latent_attention"
  sizes = check_shapes(
    operation,
    chunks,
    q=(q, "n c h k"),
    latent=(latent, "n c hkv k"),
    latent_pages=(latent_pages, "p c hkv k"),
  )
  check_pages(operation, chunks, page_table, sizes)
  check_attention(operation, page_table, None, sizes)
  _check_values(operation, latent, latent_pages, value_width)
  # NumPy's arrays cannot be indexed inside the scan.
  chunks = Chunks(*(jnp.asarray(field, jnp.int32) for field in chunks))
  return dispatch(
    operation,
    implementation,
    LATENT_IMPLEMENTATIONS,
    q,
    latent,
    latent_pages,
    chunks,
    jnp.asarray(page_table, jnp.int32),
    block_pages=BLOCK_PAGES,
    window=None,
    precision=as_precision(operation, precision),
    value_width=value_width,
  )


def latent_attention_step(
  q: Float[Array, "b h k"],
  latent: Float[Array, "b hkv k"],
  latent_pages: Float[Array, "p c hkv k"],
  position: Int32[Array, "b"],
  active: Array,
  page_table: Int32[Array, "b pages"],
  *,
  value_width: int,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[Float32[Array, "b h v"], Float[Array, "p c hkv k"]]:
  """One token of b running sequences: its latent is written first.

  Args:
    q: Queries, scaled by the caller, in the space of latents.
    latent: Latents of the tokens.
    latent_pages: Pages of latents, donated.
    position: Absolute position of each token.
    active: False for a free row, which writes nothing. [b]
    page_table: Page of each chunk of each row, in order.
    value_width: Leading channels v of a latent that are its value.
    precision: Of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and latent_pages. Rows that are free are unspecified.

  Raises:
    ValueError: As `latent_attention`, or a position or a page is none.
  """
  operation = "latent_attention_step"
  sizes = check_axes(
    operation,
    q=(q, "b h k"),
    latent=(latent, "b hkv k"),
    latent_pages=(latent_pages, "p c hkv k"),
    position=(position, "b"),
    active=(active, "b"),
    page_table=(page_table, "b pages"),
  )
  check_floating(operation, q=q, latent=latent)
  check_tokens(operation, position, active, page_table, sizes)
  check_attention(operation, page_table, None, sizes)
  _check_values(operation, latent, latent_pages, value_width)
  return dispatch(
    operation,
    implementation,
    LATENT_STEP_IMPLEMENTATIONS,
    q,
    latent,
    latent_pages,
    jnp.asarray(position, jnp.int32),
    jnp.asarray(active, bool),
    jnp.asarray(page_table, jnp.int32),
    block_pages=BLOCK_PAGES,
    window=None,
    precision=as_precision(operation, precision),
    value_width=value_width,
  )


def _check_values(
  operation: str, latent: Array, latent_pages: Array, value_width: int
) -> None:
  """Refuses values that no latent holds, and pages of another dtype."""
  check_pool(operation, latent_pages, latent.dtype, "latent_pages")
  width = latent.shape[-1]
  whole = isinstance(value_width, int) and not isinstance(value_width, bool)
  if not whole or not 1 <= value_width <= width:
    raise ValueError(
      f"value_width is {value_width!r}; it must be an int from 1 to {width}, "
      "the width of a latent."
    )
