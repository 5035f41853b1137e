"""Lattice attention over pages in int8, in plain XLA operations.

The online softmax of `xla`, over blocks that are made of two sources: pages are
gathered and dequantised, and the chunk of the queries stands in its place as it
is. So a chunk attends its own keys and values from inputs, and all earlier ones
from their pages, those that the same call has completed too.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import (
  NONE,
  Chunks,
  capture_rows,
  restore_rows,
  two_steps,
)
from sparse_prefix_jax.kernels.lattice_attention import xla
from sparse_prefix_jax.kernels.lattice_attention.int8_pages import (
  Int8Pages,
  RunningPages,
  dequantise,
  write_completed,
)
from sparse_prefix_jax.kernels.loops import scan_into_buffers


def attend_chunks(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c hkv k"],
  v: Float[Array, "n c hkv k"],
  running: RunningPages,
  pages: Int8Pages,
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  block_pages: int,
  window: int | None,
  precision: lax.Precision,
) -> tuple[Array, RunningPages, Int8Pages]:
  """Completed chunks write pages, others their slots; then all attend.

  Shapes and meaning as in `lattice_attention_int8`.
  """
  n, size = q.shape[:2]
  page = page_table[chunks.request, chunks.position // size]
  pages = write_completed(pages, page, chunks.length == size, k, v)
  running = _capture(running, chunks, k, v)

  def attend(_: None, x: tuple[Array, ...]) -> tuple[None, Array]:
    q, k, v, position, length, request = barrier(x)
    blocks = _blocks(pages, page_table[request], (k, v), position, block_pages)
    out = xla.attend_chunk(
      q, position, length, blocks, k.shape[1], window, precision
    )
    return None, barrier(out)

  q, k, v, position, length, request = two_steps(
    (q, k, v, chunks.position, chunks.length, chunks.request)
  )
  # The step added to a single one holds no token and visits no block.
  real = jnp.arange(length.size, dtype=jnp.int32) < n
  position, length = (jnp.where(real, u, 0) for u in (position, length))
  steps = q, k, v, position, length, request
  out = scan_into_buffers(attend, None, steps)[1]
  return out[:n], running, pages


def attend_rows(
  q: Float[Array, "b h k"],
  k: Float[Array, "b hkv k"],
  v: Float[Array, "b hkv k"],
  running: RunningPages,
  pages: Int8Pages,
  slots: tuple[Int32[Array, "b"], Int32[Array, "b"]],
  position: Int32[Array, "b"],
  active: Bool[Array, "b"],
  page_table: Int32[Array, "b pages"],
  *,
  block_pages: int,
  window: int | None,
  precision: lax.Precision,
) -> tuple[Array, RunningPages, Int8Pages]:
  """Puts one token per row into its running page, then attends, row by row.

  Shapes and meaning as in `lattice_attention_int8_step`; `slots` are read and
  written.
  """
  size, heads = pages.keys.shape[1:3]
  own = _with_tokens(running, slots[0], position % size, (k, v))
  running = capture_rows(running, slots[1], own)
  page = page_table[
    jnp.arange(position.shape[0], dtype=jnp.int32), position // size
  ]
  completed = active & (position % size == size - 1)
  pages = write_completed(pages, page, completed, *own)

  def attend(_: None, x: tuple[Array, ...]) -> tuple[None, Array]:
    q, k, v, position, table = barrier(x)
    blocks = _blocks(pages, table, (k, v), position, block_pages)
    out = xla.attend_row(q, position, blocks, heads, window, precision)
    return None, barrier(out)

  steps = q, *own, position, page_table
  return lax.scan(attend, None, steps)[1], running, pages


def _blocks(
  pages: Int8Pages,
  table: Int32[Array, "pages"],
  own: tuple[Float[Array, "c hkv k"], Float[Array, "c hkv k"]],
  position: Int32[Array, ""],
  block_pages: int,
) -> xla.KeyBlocks:
  """The keys of a request: its pages, and one chunk as it is.

  Args:
    pages: Those of all requests.
    table: Pages of this one, in order.
    own: Keys and values of the chunk.
    position: Of one of its tokens.
    block_pages: Pages of one block.
  """
  size = own[0].shape[0]

  def load(index: Array, ids: Array) -> tuple[Array, Array]:
    here = (
      index * block_pages + jnp.arange(block_pages, dtype=jnp.int32)
      == position // size
    )

    def keys_of(codes: Array, scales: Array, own: Array) -> Array:
      block = dequantise(codes[ids], scales[ids], own.dtype)
      block = jnp.where(here[:, None, None, None], own[None], block)
      return block.reshape(-1, *own.shape[1:]).swapaxes(0, 1)

    k = keys_of(pages.keys, pages.key_scales, own[0])
    return k, keys_of(pages.values, pages.value_scales, own[1])

  return xla.KeyBlocks(load, table, block_pages, block_pages * size)


def _capture(
  running: RunningPages,
  chunks: Chunks,
  keys: Float[Array, "n c hkv k"],
  values: Float[Array, "n c hkv k"],
) -> RunningPages:
  """Slots that are written hold the tokens of a cut chunk, of others zeros."""
  size = keys.shape[1]
  cut = (chunks.length < size)[:, None]
  kept = cut & (
    jnp.arange(size, dtype=jnp.int32)[None] < chunks.length[:, None]
  )
  kept = kept[:, :, None, None]
  own = RunningPages(
    *(jnp.where(kept, x, jnp.zeros_like(x)) for x in (keys, values))
  )
  write = jnp.where(chunks.length > 0, chunks.write, NONE)
  return capture_rows(running, write, own)


def _with_tokens(
  running: RunningPages,
  read: Int32[Array, "b"],
  offset: Int32[Array, "b"],
  tokens: tuple[Float[Array, "b hkv k"], Float[Array, "b hkv k"]],
) -> RunningPages:
  """The running page of each row with one more token; a chunk begins empty."""
  held = restore_rows(running, read)
  begins = (offset == 0)[:, None, None, None]

  def leaf(page: Array, token: Array) -> Array:
    here = jnp.arange(page.shape[1], dtype=jnp.int32)[None] == offset[:, None]
    page = jnp.where(begins, jnp.zeros_like(page), page)
    token = token.astype(page.dtype)[:, None]
    return jnp.where(here[:, :, None, None], token, page)

  return barrier(RunningPages(*map(leaf, held, tokens)))
