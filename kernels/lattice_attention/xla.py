"""Lattice attention in plain XLA operations: online softmax over page blocks.

For the blocks of keys in absolute order, with m the running maximum, l the
running sum and o the running output:

    m' = max(m, max s),  l' = l e^{m-m'} + sum e^{s-m'},
    o' = o e^{m-m'} + e^{s-m'} V

Every block has the same shape, a query sees the same blocks however it came
here, and blocks past its chunk are never visited: the trip count is data.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import Chunks, two_steps
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.kernels.loops import scan_into_buffers

Load: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]
"""Number of a block and its pages -> its keys [hkv keys k] and values."""


class KeyBlocks(NamedTuple):
  """The keys of one request, block by block.

  Attributes:
    load: What gathers a block.
    pages: Pages of the request, in order.
    block_pages: Pages of one block.
    width: Keys of one block.
    value_width: Of a value head; None for that of keys.
  """

  load: Load
  pages: Int32[Array, "pages"]
  block_pages: int
  width: int
  value_width: int | None = None


class AttentionOptions(NamedTuple):
  """What is static in attention over pages.

  Attributes:
    block_pages: Pages that are gathered for one product.
    window: Keys that a token sees, itself included, or None.
    precision: Of the products.
    value_width: Leading channels of a latent that are its value, where one pool
      holds both; None where keys and values have pools of their own.
  """

  block_pages: int
  window: int | None
  precision: lax.Precision
  value_width: int | None = None


class _Softmax(NamedTuple):
  """The carry of the online softmax over blocks of keys."""

  maximum: Float32[Array, "hkv rows 1"]
  total: Float32[Array, "hkv rows 1"]
  out: Float32[Array, "hkv rows v"]


def attend_chunks(
  q: Float[Array, "n c h k"],
  tokens: tuple[Float[Array, "n c hkv k"], ...],
  pools: tuple[Float[Array, "p c hkv k"], ...],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  options: AttentionOptions,
) -> tuple[Float32[Array, "n c h v"], tuple[Array, ...]]:
  """Lets all chunks write their pages, then each attend, in a static scan.

  The query heads of a group stand below one another as rows of one product per
  key head. Meaning as in `lattice_attention`.

  Args:
    q: Queries, scaled.
    tokens: Keys and values of the chunks; or latents, which are both.
    pools: Pages of the same, as many.
    chunks: Position, length and page-table row of each chunk.
    page_table: Pages of each request, in order.
    options: What is static.

  Returns:
    The outputs, and the pools.
  """
  size, heads = q.shape[1], pools[0].shape[2]
  own_page = page_table[chunks.request, chunks.position // size]
  own_page = jnp.where(chunks.length > 0, own_page, pools[0].shape[0])
  pools = tuple(_write(x, own_page, u) for x, u in zip(pools, tokens))
  load = _gather(pools, options)
  width = options.block_pages * size

  def attend(_: None, x: tuple[Array, ...]) -> tuple[None, Array]:
    q, position, length, request = barrier(x)
    pages = page_table[request]
    blocks = KeyBlocks(
      load, pages, options.block_pages, width, options.value_width
    )
    rest = blocks, heads, options.window, options.precision
    out = attend_chunk(q, position, length, *rest)
    return None, barrier(out)

  n = q.shape[0]
  q, position, length, request = two_steps(
    (q, chunks.position, chunks.length, chunks.request)
  )
  # The step added to a single one holds no token and visits no block.
  real = jnp.arange(length.size, dtype=jnp.int32) < n
  position, length = (jnp.where(real, u, 0) for u in (position, length))
  out = scan_into_buffers(attend, None, (q, position, length, request))[1]
  return out[:n], pools


def attend_rows(
  q: Float[Array, "b h k"],
  tokens: tuple[Float[Array, "b hkv k"], ...],
  pools: tuple[Float[Array, "p c hkv k"], ...],
  position: Int32[Array, "b"],
  active: Bool[Array, "b"],
  page_table: Int32[Array, "b pages"],
  options: AttentionOptions,
) -> tuple[Float32[Array, "b h v"], tuple[Array, ...]]:
  """Writes one token per row to its page, then attends, row by row.

  Rows are scanned, so that a row has the same bits wherever it stands and
  whoever joins it. Meaning as in `lattice_attention_step`.

  Args:
    q: Queries, scaled.
    tokens: Keys and values of the tokens; or latents, which are both.
    pools: Pages of the same, as many.
    position: Absolute position of each token.
    active: False for a free row, which writes nothing.
    page_table: Pages of each row, in order.
    options: What is static.

  Returns:
    The outputs, and the pools.
  """
  heads = pools[0].shape[2]
  pools = write_rows(pools, tokens, position, active, page_table)
  load = _gather(pools, options)
  width = options.block_pages * pools[0].shape[1]

  def attend(_: None, x: tuple[Array, ...]) -> tuple[None, Array]:
    q, position, pages = barrier(x)
    blocks = KeyBlocks(
      load, pages, options.block_pages, width, options.value_width
    )
    rest = blocks, heads, options.window, options.precision
    out = attend_row(q, position, *rest)
    return None, barrier(out)

  out = lax.scan(attend, None, (q, position, page_table))[1]
  return out, pools


def attend_chunk(
  q: Float[Array, "c h k"],
  position: Int32[Array, ""],
  length: Int32[Array, ""],
  blocks: KeyBlocks,
  heads: int,
  window: int | None,
  precision: lax.Precision,
) -> Float32[Array, "c h v"]:
  """Attends with all queries of a chunk.

  Args:
    q: Its queries, scaled.
    position: Of its first token.
    length: How many tokens it has.
    blocks: Keys and values, its own among them.
    heads: Heads of keys and values.
    window: Tokens that a token sees, or None.
    precision: Of the products.
  """
  size, groups = q.shape[0], q.shape[1] // heads
  rows = q.reshape(size, heads, groups, -1).transpose(1, 2, 0, 3)
  out = attend_blocks(
    rows.reshape(heads, groups * size, -1),
    # As wide as positions, where 64 bits are the default too.
    jnp.tile(position + jnp.arange(size, dtype=position.dtype), groups),
    position + length,
    blocks,
    window,
    precision,
  )
  out = out.reshape(heads, groups, size, -1).transpose(2, 0, 1, 3)
  return out.reshape(size, heads * groups, -1)


def attend_row(
  q: Float[Array, "h k"],
  position: Int32[Array, ""],
  blocks: KeyBlocks,
  heads: int,
  window: int | None,
  precision: lax.Precision,
) -> Float32[Array, "h v"]:
  """Attends with the queries of one token.

  Args:
    q: Its queries, scaled.
    position: Of the token.
    blocks: Keys and values, its own among them.
    heads: Heads of keys and values.
    window: Tokens that a token sees, or None.
    precision: Of the products.
  """
  groups = q.shape[0] // heads
  # A product of one row has bits of its own: a single query is doubled.
  copies = 2 if groups == 1 else 1
  rows = jnp.tile(q.reshape(heads, groups, -1), (1, copies, 1))
  out = attend_blocks(
    rows,
    jnp.broadcast_to(position, rows.shape[1:2]),
    position + 1,
    blocks,
    window,
    precision,
  )
  return out[:, :groups].reshape(heads * groups, -1)


def write_rows(
  pools: tuple[Float[Array, "p c hkv k"], ...],
  tokens: tuple[Float[Array, "b hkv k"], ...],
  position: Int32[Array, "b"],
  active: Bool[Array, "b"],
  page_table: Int32[Array, "b pages"],
) -> tuple[Array, ...]:
  """Writes what one token of each active row keeps to its page.

  Args:
    pools: Pages of keys and of values, or of latents.
    tokens: Keys and values, or latents: as many.
    position: Absolute position of each token.
    active: False for a free row, which writes nothing.
    page_table: Pages of each row, in order.

  Returns:
    The pools.
  """
  size, heads = pools[0].shape[1:3]
  row = jnp.arange(position.shape[0], dtype=jnp.int32)
  page = page_table[row, position // size]
  page = jnp.where(active, page, pools[0].shape[0])
  alone = heads == 1 and current_device().platform == "tpu"
  write = _write_one_by_one if alone else _write
  index = page, position % size
  return tuple(write(x, index, u) for x, u in zip(pools, tokens))


def _gather(
  pools: tuple[Float[Array, "p c hkv k"], ...], options: AttentionOptions
) -> Load:
  """What gathers a block of keys and values from their pages."""
  width = options.block_pages * pools[0].shape[1]

  def keys_of(pool: Array, ids: Array) -> Array:
    block = pool[ids]
    return block.reshape(width, *pool.shape[2:]).swapaxes(0, 1)

  def load(_: Array, ids: Array) -> tuple[Array, Array]:
    keys = keys_of(pools[0], ids)
    if options.value_width is not None:
      return keys, keys[:, :, : options.value_width]
    return keys, keys_of(pools[1], ids)

  return load


def attend_blocks(
  q: Float[Array, "hkv rows k"],
  row_position: Int32[Array, "rows"],
  end: Int32[Array, ""],
  blocks: KeyBlocks,
  window: int | None,
  precision: lax.Precision,
) -> Float32[Array, "hkv rows v"]:
  """Attends from rows of one request to its blocks of keys up to token `end`.

  Args:
    q: Queries, scaled; rows of one key head share its keys.
    row_position: Absolute position per row: the last key that it sees; the
      first row stands first.
    end: Tokens that exist; values from there on are selected to zero.
    blocks: Keys and values of the request.
    window: Keys that a row sees, or None for all before it.
    precision: Precision of the products.

  Returns:
    softmax(q K^T) V; zeros if `end` is 0.
  """
  width, block_pages = blocks.width, blocks.block_pages

  def block(index: Array, carry: _Softmax) -> _Softmax:
    start = index * block_pages
    ids = lax.dynamic_slice_in_dim(blocks.pages, start, block_pages)
    key_position = index * width + jnp.arange(width, dtype=jnp.int32)
    k, v = blocks.load(index, ids)
    # A page that no row sees may hold anything.
    held = key_position < end
    if window is not None:
      held &= key_position > row_position[0] - window
    v = jnp.where(held[None, :, None], v, jnp.zeros_like(v))
    scores = jnp.einsum(
      "hrk,hsk->hrs",
      q,
      k,
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    seen = key_position[None, :] <= row_position[:, None]
    if window is not None:
      seen &= key_position[None, :] > row_position[:, None] - window
    scores = jnp.where(seen[None], scores, -jnp.inf)
    return _accumulate(carry, scores, v, precision)

  shape = q.shape[:2]
  empty = _Softmax(
    jnp.full((*shape, 1), -jnp.inf, jnp.float32),
    jnp.zeros((*shape, 1), jnp.float32),
    jnp.zeros((*shape, blocks.value_width or q.shape[2]), jnp.float32),
  )
  # Without a window the first block holds token 0, which all rows see.
  first = 0
  if window is not None:
    first = jnp.maximum(row_position[0] - window + 1, 0) // width
  last = lax.fori_loop(first, (end + width - 1) // width, block, empty)
  # An inactive chunk visits no block; its rows stay zero.
  return last.out / jnp.where(last.total == 0, 1.0, last.total)


def _accumulate(
  carry: _Softmax,
  scores: Float32[Array, "hkv rows keys"],
  v: Float[Array, "hkv keys k"],
  precision: lax.Precision,
) -> _Softmax:
  """Takes one step of the online softmax; exp(-inf) = 0 masks keys out.

  A row that has seen no key yet, because its window begins in a later block,
  has a maximum of -inf; it subtracts 0 and stays empty.
  """
  maximum = jnp.maximum(carry.maximum, scores.max(axis=-1, keepdims=True))
  finite = jnp.where(maximum == -jnp.inf, 0.0, maximum)
  rescale = jnp.exp(carry.maximum - finite)
  weights = jnp.exp(scores - finite)
  total = carry.total * rescale + weights.sum(axis=-1, keepdims=True)
  update = jnp.einsum(
    "hrs,hsk->hrk",
    weights.astype(v.dtype),
    v,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return _Softmax(maximum, total, carry.out * rescale + update)


def _write(
  pool: Float[Array, "p c hkv k"],
  index: Array | tuple[Array, ...],
  value: Float[Array, "..."],
) -> Float[Array, "p c hkv k"]:
  """Writes at `index`; an index past the end is dropped."""
  return pool.at[index].set(value.astype(pool.dtype), mode="drop")


def _write_one_by_one(
  pool: Float[Array, "p c hkv k"],
  index: tuple[Int32[Array, "b"], Int32[Array, "b"]],
  value: Float[Array, "b hkv k"],
) -> Float[Array, "p c hkv k"]:
  """`_write` of b tokens, in the order in which the pool lies in memory.

  For a TPU and one key head: XLA's scatter there drops the axis of heads, takes
  another order for what is left, and copies the pool to it and back.
  """
  page, offset = index
  pool, value = pool.swapaxes(1, 2), value.astype(pool.dtype)

  def put(i: Array, pool: Array) -> Array:
    start = page[i], 0, offset[i], 0
    held = lax.dynamic_slice(pool, start, (1, pool.shape[1], 1, pool.shape[3]))
    new = jnp.where(page[i] < pool.shape[0], value[i][None, :, None], held)
    return lax.dynamic_update_slice(pool, new, start)

  return lax.fori_loop(0, page.shape[0], put, pool).swapaxes(1, 2)
