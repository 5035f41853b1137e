"""lattice_attention: causal attention whose bits depend on the tokens alone."""

from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.lattice_attention import xla

BLOCK_PAGES = 8
"""Pages that one product covers; page tables are a multiple of it wide."""

_PRECISION = lax.Precision.HIGHEST
_IMPLEMENTATIONS = (plain(xla.attend_chunks),)


def lattice_attention(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c hkv k"],
  v: Float[Array, "n c hkv k"],
  key_pages: Float[Array, "p c hkv k"],
  value_pages: Float[Array, "p c hkv k"],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[
  Float32[Array, "n c h k"],
  Float[Array, "p c hkv k"],
  Float[Array, "p c hkv k"],
]:
  """softmax(q K^T) V over the tokens [0, t], page by page from page 0.

  All pages of the call are written before any chunk attends, so chunks of one
  request may stand in one call. Keys are reduced in blocks of `BLOCK_PAGES`
  pages on the absolute grid; what is masked is selected to zero in scores and
  in values, so free pages may hold anything.

  Args:
    q: Queries, scaled by the caller, rotated.
    k: Keys of the chunks, rotated by absolute position.
    v: Values of the chunks.
    key_pages: Pages of keys, donated.
    value_pages: Pages of values, donated.
    chunks: Position and page-table row of each chunk; length 0 writes nothing.
    page_table: Page of each chunk of each request, in order; entries past the
      last used page may be any valid page.
    precision: Of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out, key_pages, value_pages. Rows past a chunk's length are unspecified.

  Raises:
    ValueError: If no implementation fits, or the page table is not a multiple
      of BLOCK_PAGES wide.
  """
  _check_page_table(page_table)
  arguments = q, k, v, key_pages, value_pages, chunks, page_table
  return dispatch(
    "lattice_attention",
    implementation,
    _IMPLEMENTATIONS,
    *arguments,
    block_pages=BLOCK_PAGES,
    precision=precision,
  )


def lattice_attention_step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b hkv k"],
  v: Float[Array, "b hkv k"],
  key_pages: Float[Array, "p c hkv k"],
  value_pages: Float[Array, "p c hkv k"],
  position: Int32[Array, "b"],
  active: Array,
  page_table: Int32[Array, "b pages"],
  *,
  precision: lax.Precision = _PRECISION,
) -> tuple[
  Float32[Array, "b h k"],
  Float[Array, "p c hkv k"],
  Float[Array, "p c hkv k"],
]:
  """One token of b running sequences: its key and value are written first."""
  _check_page_table(page_table)
  return xla.attend_rows(
    q,
    k,
    v,
    key_pages,
    value_pages,
    position,
    active,
    page_table,
    BLOCK_PAGES,
    precision,
  )


def _check_page_table(page_table: Array) -> None:
  if page_table.shape[1] % BLOCK_PAGES:
    raise ValueError(
      f"page_table is {page_table.shape[1]} pages wide; it must be a multiple "
      f"of {BLOCK_PAGES}."
    )
