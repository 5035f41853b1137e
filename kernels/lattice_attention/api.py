"""lattice_attention: causal attention whose bits depend on the tokens alone."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.checks import (
  as_precision,
  check_array,
  check_axes,
  check_floating,
  check_pool,
  check_shapes,
)
from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.lattice_attention import (
  chunks_mosaic_tpu,
  decode_mosaic_gpu,
  decode_mosaic_tpu,
  mosaic_gpu,
  pages_vjp,
  vjp,
)
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
from sparse_prefix_jax.kernels.slot_checks import (
  check_lengths,
  check_pages,
  check_tokens,
)

BLOCK_PAGES = 8
"""Pages that one product covers; page tables are a multiple of it wide."""

_PRECISION = lax.Precision.HIGHEST
IMPLEMENTATIONS = (
  mosaic_gpu.IMPLEMENTATION,
  chunks_mosaic_tpu.IMPLEMENTATION,
  plain(over_pools(pages_vjp.attend_chunks, 2)),
)
STEP_IMPLEMENTATIONS = (
  decode_mosaic_gpu.IMPLEMENTATION,
  decode_mosaic_tpu.IMPLEMENTATION,
  plain(over_pools(pages_vjp.attend_rows, 2)),
)


def lattice_attention(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c hkv k"],
  v: Float[Array, "n c hkv k"],
  key_pages: Float[Array, "p c hkv k"],
  value_pages: Float[Array, "p c hkv k"],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  window: int | None = None,
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
    window: Keys that a token sees, itself included; None for all before it.
      Pages that no token of a chunk sees are not visited.
    precision: Precision of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out, key_pages, value_pages. Rows past a chunk's length are unspecified.

  Raises:
    ValueError: If no implementation fits, the page table is not a multiple of
      BLOCK_PAGES wide, the window is below 1, or pages are of another dtype
      than what is written into them.
  """
  pages = "p c hkv k"
  sizes = check_shapes(
    "lattice_attention",
    chunks,
    q=(q, "n c h k"),
    k=(k, "n c hkv k"),
    v=(v, "n c hkv k"),
    key_pages=(key_pages, pages),
    value_pages=(value_pages, pages),
  )
  check_pages("lattice_attention", chunks, page_table, sizes)
  check_attention("lattice_attention", page_table, window, sizes)
  check_pool("lattice_attention", key_pages, k.dtype, "key_pages")
  check_pool("lattice_attention", value_pages, v.dtype, "value_pages")
  # NumPy's arrays cannot be indexed inside the scan.
  chunks = Chunks(*(jnp.asarray(field, jnp.int32) for field in chunks))
  page_table = jnp.asarray(page_table, jnp.int32)
  return dispatch(
    "lattice_attention",
    implementation,
    IMPLEMENTATIONS,
    q,
    k,
    v,
    key_pages,
    value_pages,
    chunks,
    page_table,
    block_pages=BLOCK_PAGES,
    window=window,
    precision=as_precision("lattice_attention", precision),
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
  window: int | None = None,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[
  Float32[Array, "b h k"],
  Float[Array, "p c hkv k"],
  Float[Array, "p c hkv k"],
]:
  """One token of b running sequences: its key and value are written first.

  Args:
    q: Queries, scaled by the caller, rotated.
    k: Keys of the tokens, rotated by absolute position.
    v: Values of the tokens.
    key_pages: Pages of keys, donated.
    value_pages: Pages of values, donated.
    position: Absolute position of each token.
    active: False for a free row, which writes nothing. [b]
    page_table: Page of each chunk of each row, in order.
    window: Keys that a token sees, itself included; None for all before it.
    precision: Of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out, key_pages, value_pages. Rows that are free are unspecified.

  Raises:
    ValueError: Shapes do not belong together, a position or a page is none, the
      page table is not a multiple of BLOCK_PAGES wide, the window is below 1,
      pages are of another dtype than the token, or no implementation fits, with
      the reason of each.
  """
  sizes = check_axes(
    "lattice_attention_step",
    q=(q, "b h k"),
    k=(k, "b hkv k"),
    v=(v, "b hkv k"),
    key_pages=(key_pages, "p c hkv k"),
    value_pages=(value_pages, "p c hkv k"),
    position=(position, "b"),
    active=(active, "b"),
    page_table=(page_table, "b pages"),
  )
  check_floating("lattice_attention_step", q=q, k=k, v=v)
  check_tokens("lattice_attention_step", position, active, page_table, sizes)
  check_attention("lattice_attention_step", page_table, window, sizes)
  check_pool("lattice_attention_step", key_pages, k.dtype, "key_pages")
  check_pool("lattice_attention_step", value_pages, v.dtype, "value_pages")
  position, page_table = (
    jnp.asarray(x, jnp.int32) for x in (position, page_table)
  )
  active = jnp.asarray(active, bool)
  return dispatch(
    "lattice_attention_step",
    implementation,
    STEP_IMPLEMENTATIONS,
    q,
    k,
    v,
    key_pages,
    value_pages,
    position,
    active,
    page_table,
    block_pages=BLOCK_PAGES,
    window=window,
    precision=as_precision("lattice_attention_step", precision),
  )


def lattice_attention_core(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c hkv k"],
  v: Float[Array, "n c hkv k"],
  length: Int32[Array, "n"],
  *,
  past_keys: Float[Array, "past c hkv k"] | None = None,
  past_values: Float[Array, "past c hkv k"] | None = None,
  window: int | None = None,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> Float32[Array, "n c h k"]:
  """The operation for one request, without a pool: what training uses.

  The forward pass is `lattice_attention` and has its bits. It keeps its inputs
  for the backward pass, which computes the weights of each chunk again, in XLA
  operations.

  Args:
    q: As in `lattice_attention`.
    k: As in `lattice_attention`.
    v: As in `lattice_attention`.
    length: Real tokens of each chunk.
    past_keys: Keys of the chunks before the first; what a request resumes from.
    past_values: Values of the same.
    window: As in `lattice_attention`.
    precision: Precision of the products.
    implementation: What computes the forward pass: a name, a config or None.

  Returns:
    Outputs [n c h k] in float32. Rows past a chunk's length are unspecified.

  Raises:
    ValueError: As `lattice_attention`; or if only one of the pasts is given, or
      they differ in shape, or in dtype from k and v.
  """
  sizes = check_axes(
    "lattice_attention_core",
    q=(q, "n c h k"),
    k=(k, "n c hkv k"),
    v=(v, "n c hkv k"),
    length=(length, "n"),
  )
  check_floating("lattice_attention_core", q=q, k=k, v=v)
  check_lengths("lattice_attention_core", length, sizes["c"])
  precision = as_precision("lattice_attention_core", precision)
  past_keys, past_values = (
    jnp.zeros((0, *new.shape[1:]), new.dtype) if past is None else past
    for past, new in ((past_keys, k), (past_values, v))
  )
  _check_past("past_keys", past_keys, k)
  _check_past("past_values", past_values, v)
  if past_keys.shape != past_values.shape:
    raise ValueError(
      f"past_keys has shape {past_keys.shape} and past_values "
      f"{past_values.shape}; both are given, with the same shape, or neither."
    )

  def forward(q: Array, keys: Array, values: Array, length: Array) -> Array:
    n, past = q.shape[0], keys.shape[0] - q.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)
    nothing = jnp.zeros_like(length)
    position = (past + index) * q.shape[1]
    chunks = Chunks(nothing, nothing, length, position, nothing)
    pages = -(-keys.shape[0] // BLOCK_PAGES) * BLOCK_PAGES
    table = jnp.minimum(jnp.arange(pages, dtype=jnp.int32), past + n - 1)
    return lattice_attention(
      q,
      keys[past:],
      values[past:],
      keys,
      values,
      chunks,
      table[None],
      window=window,
      precision=precision,
      implementation=implementation,
    )[0]

  keys = jnp.concatenate([past_keys, k])
  values = jnp.concatenate([past_values, v])
  core = vjp.Core(forward, window, precision)
  return vjp.attend(core, q, keys, values, length)


def _check_past(name: str, past: Array, new: Array) -> None:
  """Refuses a past that cannot stand before the chunks of a call, in dtype too.

  Concatenated, it would be converted in silence.
  """
  check_array("lattice_attention_core", name, past)
  if past.shape[1:] != new.shape[1:]:
    raise ValueError(
      f"{name} of lattice_attention_core has shape {past.shape}; its chunks "
      f"must be {new.shape[1:]}."
    )
  check_pool("lattice_attention_core", past, new.dtype, name)


def check_attention(
  operation: str,
  page_table: Array,
  window: int | None,
  sizes: Mapping[str, int],
) -> None:
  """Refuses heads, page tables and windows that the products cannot take.

  Args:
    operation: The name of the operation, for the message.
    page_table: Pages of each request, in order.
    window: Keys that a token sees, or None.
    sizes: The sizes of its letters; h and hkv are read.

  Raises:
    ValueError: Naming what does not fit, and what is allowed.
  """
  if sizes["h"] % sizes["hkv"]:
    raise ValueError(
      f"{operation} has {sizes['h']} query heads for {sizes['hkv']} key heads; "
      "they must be a multiple."
    )
  if page_table.shape[1] % BLOCK_PAGES:
    raise ValueError(
      f"page_table is {page_table.shape[1]} pages wide; it must be a multiple "
      f"of {BLOCK_PAGES}."
    )
  whole = isinstance(window, int) and not isinstance(window, bool)
  if window is not None and not (whole and 1 <= window < 1 << 31):
    raise ValueError(
      f"window is {window}; a token sees at least itself: an int from 1, of at "
      "most 31 bits."
    )
