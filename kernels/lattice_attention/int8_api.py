"""lattice_attention over pages in int8: the same operation, fewer bytes.

There is no kernel for it: it runs in XLA operations everywhere. It has no
gradient, and says so: rounding is flat.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.checks import (
  as_precision,
  check_axes,
  check_kind,
  check_pool,
  check_shapes,
)
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.kernels.differentiable import without_gradient
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.lattice_attention import int8_xla
from sparse_prefix_jax.kernels.lattice_attention.api import (
  BLOCK_PAGES,
  check_attention,
)
from sparse_prefix_jax.kernels.lattice_attention.int8_pages import (
  Int8Pages,
  RunningPages,
)
from sparse_prefix_jax.kernels.slot_checks import (
  check_pages,
  check_rows,
  check_slots,
  check_tokens,
)

_PRECISION = lax.Precision.HIGHEST
_WHY = (
  "attention over pages in int8 has no gradient; differentiate "
  "lattice_attention or lattice_attention_step, over pages in floats."
)
_RUNNING, _CODES, _SCALES = "s c hkv k", "p c hkv k", "p hkv"


def lattice_attention_int8(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c hkv k"],
  v: Float[Array, "n c hkv k"],
  running: RunningPages,
  pages: Int8Pages,
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  window: int | None = None,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[Float32[Array, "n c h k"], RunningPages, Int8Pages]:
  """`lattice_attention` where completed chunks are quantised, once.

  A chunk attends its own keys and values as they are given, and those of
  earlier chunks from their pages, whether this call completed them or another.
  A chunk with all of its tokens writes its page; a chunk that is cut writes no
  page, and its tokens to the slot that it writes.

  Args:
    q: Queries, scaled by the caller, rotated.
    k: Keys of the chunks, rotated by absolute position.
    v: Values of the chunks.
    running: The chunk that runs of every slot, donated.
    pages: Completed chunks, donated.
    chunks: Position, length, page-table row and slot to write of each chunk.
    page_table: Page of each chunk of each request, in order; entries past the
      last used page may be any valid page.
    window: Keys that a token sees, itself included; None for all before it.
    precision: Precision of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out, running, pages. Rows past a chunk's length are unspecified.

  Raises:
    ValueError: If arrays do not belong together, or no implementation fits.
  """
  operation = "lattice_attention_int8"
  _check_kinds(operation, running, pages)
  sizes = check_shapes(
    operation,
    chunks,
    q=(q, "n c h k"),
    k=(k, "n c hkv k"),
    v=(v, "n c hkv k"),
    **_axes(running, pages),
  )
  _check_dtypes(operation, k, running, pages)
  check_slots(operation, chunks, sizes)
  check_pages(operation, chunks, page_table, sizes)
  check_attention(operation, page_table, window, sizes)
  chunks = Chunks(*(jnp.asarray(field, jnp.int32) for field in chunks))
  return dispatch(
    operation,
    implementation,
    (plain(without_gradient(int8_xla.attend_chunks, _WHY)),),
    q,
    k,
    v,
    running,
    pages,
    chunks,
    jnp.asarray(page_table, jnp.int32),
    block_pages=BLOCK_PAGES,
    window=window,
    precision=as_precision(operation, precision),
  )


def lattice_attention_int8_step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b hkv k"],
  v: Float[Array, "b hkv k"],
  running: RunningPages,
  pages: Int8Pages,
  rows: Rows,
  page_table: Int32[Array, "b pages"],
  *,
  window: int | None = None,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[Float32[Array, "b h k"], RunningPages, Int8Pages]:
  """`lattice_attention_step` where completed chunks are quantised.

  The key and value of a token join the running page of the slot that its row
  reads, in the slot that it writes. The token that completes a chunk writes the
  chunk's page too, and still attends the chunk as it is.

  Args:
    q: Queries, scaled by the caller, rotated.
    k: Keys of the tokens, rotated by absolute position.
    v: Values of the tokens.
    running: The chunk that runs of every slot, donated.
    pages: Completed chunks, donated.
    rows: Slots, position and whether a sequence holds the row.
    page_table: Page of each chunk of each row, in order.
    window: Keys that a token sees, itself included; None for all before it.
    precision: Of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out, running, pages. Rows that are free are unspecified.

  Raises:
    ValueError: If arrays do not belong together, or no implementation fits.
  """
  operation = "lattice_attention_int8_step"
  _check_kinds(operation, running, pages)
  check_kind(operation, "rows", rows, Rows)
  sizes = check_rows(
    operation,
    rows.read,
    rows.write,
    q=(q, "b h k"),
    k=(k, "b hkv k"),
    v=(v, "b hkv k"),
    **_axes(running, pages),
  )
  check_axes(
    operation,
    q=(q, "b h k"),
    position=(rows.position, "b"),
    active=(rows.active, "b"),
    page_table=(page_table, "b pages"),
  )
  _check_dtypes(operation, k, running, pages)
  check_tokens(operation, rows.position, rows.active, page_table, sizes)
  check_attention(operation, page_table, window, sizes)
  slots = jnp.asarray(rows.read, jnp.int32), jnp.asarray(rows.write, jnp.int32)
  return dispatch(
    operation,
    implementation,
    (plain(without_gradient(int8_xla.attend_rows, _WHY)),),
    q,
    k,
    v,
    running,
    pages,
    slots,
    jnp.asarray(rows.position, jnp.int32),
    jnp.asarray(rows.active, bool),
    jnp.asarray(page_table, jnp.int32),
    block_pages=BLOCK_PAGES,
    window=window,
    precision=as_precision(operation, precision),
  )


def _check_kinds(
  operation: str, running: RunningPages, pages: Int8Pages
) -> None:
  """Refuses pages that are not of these classes: fields go by their names."""
  check_kind(operation, "running", running, RunningPages)
  check_kind(operation, "pages", pages, Int8Pages)


def _axes(
  running: RunningPages, pages: Int8Pages
) -> dict[str, tuple[Array, str]]:
  """All arrays of pages with their axes, by name."""
  named = {f"running.{n}": (x, _RUNNING) for n, x in running._asdict().items()}
  kinds = _CODES, _CODES, _SCALES, _SCALES
  return named | {
    f"pages.{name}": (x, axes)
    for (name, x), axes in zip(pages._asdict().items(), kinds, strict=True)
  }


def _check_dtypes(
  operation: str, k: Array, running: RunningPages, pages: Int8Pages
) -> None:
  """Refuses pools of another dtype: codes would be cut in silence."""
  kinds = *[k.dtype] * 2, *[jnp.int8] * 2, *[jnp.float32] * 2
  named = _axes(running, pages)
  for name, dtype in zip(named, kinds, strict=True):
    check_pool(operation, named[name][0], dtype, name)
