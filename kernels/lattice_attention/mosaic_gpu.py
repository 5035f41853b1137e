"""lattice_attention on GPU: a program per chunk and query head.

A program holds its 64 queries in shared memory and walks through the pages of
its request in absolute order, the next pages on their way while one is reduced,
with the online softmax in registers:

    m' = max(m, max s),  l' = l e^{m-m'} + sum e^{s-m'},
    o' = o e^{m-m'} + e^{s-m'} V

One step is one page, whatever surrounds the chunk, so its bits depend on the
tokens alone. Pages of which no query sees a key are not visited; in those that
are, scores of unseen keys are selected to -inf and values that do not exist to
zero, so free pages and padding may hold anything.

Programs of heads that share keys, and of chunks of one request, read the same
pages at about the same time: from the second on they come from the L2 cache.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.lattice_attention.page_stream import PageStream
from sparse_prefix_jax.kernels.mosaic_gpu import chunk as algebra
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  refused_device,
  refused_sizes,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_rows,
  dot,
  dot_transposed,
  indices,
  launch,
  new,
  tile,
)

WIDTHS = (64, 128, 256)
"""Widths of heads that kernels take."""


class _Softmax(NamedTuple):
  """The carry of the online softmax.

  Attributes:
    maximum: m, -inf before the first key. [c]
    total: l. [c]
    out: o, 64 columns at a time. [c 64] each
  """

  maximum: Array
  total: Array
  out: tuple[Array, ...]


def packed(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c hkv k"],
  v: Float[Array, "n c hkv k"],
  key_pages: Float[Array, "p c hkv k"],
  value_pages: Float[Array, "p c hkv k"],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  block_pages: int,
  window: int | None,
  precision: lax.Precision,
  config: MosaicGpuConfig,
) -> tuple[
  Float32[Array, "n c h k"],
  Float[Array, "p c hkv k"],
  Float[Array, "p c hkv k"],
]:
  """Lets all chunks write their pages, then each attend in one launch.

  Arguments of `lattice_attention`. A block here is one page, and products of
  bfloat16 are exact, so `block_pages` and `precision` say nothing.

  Returns:
    out, zero past a chunk's length, and both pools.
  """
  del block_pages, precision
  own_page = page_table[chunks.request, chunks.position // CHUNK]
  own_page = jnp.where(chunks.length > 0, own_page, key_pages.shape[0])
  key_pages = key_pages.at[own_page].set(k, mode="drop")
  value_pages = value_pages.at[own_page].set(v, mode="drop")
  out = _attend(q, key_pages, value_pages, chunks, page_table, window, config)
  return out, key_pages, value_pages


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  q: Array,
  k: Array,
  v: Array,
  key_pages: Array,
  value_pages: Array,
  *_: Any,
  **__: Any,
) -> str | None:
  """Why the kernel does not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernel.
    q: Queries. [n c h k]
    k: Keys. [n c hkv k]
    v: Values. [n c hkv k]
    key_pages: The pool of keys. [p c hkv k]
    value_pages: The pool of values. [p c hkv k]
    *_: Further arguments, which do not matter here.
    **__: Further options, which do not matter here.
  """
  dtypes = {x.dtype for x in (q, k, v, key_pages, value_pages)}
  if dtypes != {jnp.dtype(jnp.bfloat16)}:
    return "takes bfloat16 only, the operands of its products"
  if q.shape[1] != CHUNK:
    return f"takes chunks of {CHUNK} tokens, and these have {q.shape[1]}"
  if q.shape[3] not in WIDTHS:
    return f"takes heads of {WIDTHS}, and these are {q.shape[3]} wide"
  return refused_device(device, config, products=True) or refused_sizes(
    config.stages, _shared_bytes(q.shape[3], config.stages)
  )


def _shared_bytes(width: int, stages: int) -> int:
  """Counts the bytes of queries, pages and weights, in bfloat16.

  Args:
    width: Width of a head.
    stages: How many pages are under way at a time.
  """
  return 2 * CHUNK * (width * (1 + 2 * stages) + CHUNK)


def heuristic(device: Device, *_: Any, **__: Any) -> MosaicGpuConfig:
  """Two stages: at 128 columns two programs share a multiprocessor then."""
  return MosaicGpuConfig(stages=2)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=packed,
  refusal=within_grid(refusal),
  heuristic=heuristic,
)


def _attend(
  q: BFloat16[Array, "n c h k"],
  key_pages: BFloat16[Array, "p c hkv k"],
  value_pages: BFloat16[Array, "p c hkv k"],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  window: int | None,
  config: MosaicGpuConfig,
) -> Float32[Array, "n c h k"]:
  """Computes the outputs of the chunks, which are zero past their lengths.

  Args:
    q: Queries, scaled and rotated.
    key_pages: Pages of keys, those of the chunks among them.
    value_pages: Pages of values, those of the chunks among them.
    chunks: Position, length and page-table row of each chunk.
    page_table: Pages of each request, in order.
    window: Keys that a token sees, or None for all before it.
    config: `stages` of pages.
  """
  n, _, heads, width = q.shape
  # Pages [first, stop) of each chunk hold keys that it sees.
  first = jnp.zeros_like(chunks.position)
  if window is not None:
    first = jnp.maximum(chunks.position - window + 1, 0) // CHUNK
  stop = jnp.where(chunks.length > 0, chunks.position // CHUNK + 1, 0)
  meta = jnp.stack([*chunks[2:], first, stop]).astype(jnp.int32)
  buffers = (
    tile(CHUNK, width),
    tile(config.stages, CHUNK, width),
    tile(config.stages, CHUNK, width),
    tile(CHUNK, CHUNK),
    plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
    plgpu.Barrier(),
  )

  def body(operands: Any, results: Any, buffers: Any) -> None:
    fields: Any = *operands, *results, *buffers, window, config
    _Program(*fields).run()

  (out,) = launch(
    body,
    (meta, q, key_pages, value_pages, page_table),
    [new(*q.shape, dtype=jnp.float32)],
    buffers,
    grid={"chunk": n, "head": heads},
    config=config,
    name="lattice_attention",
  )
  return out


_LENGTH, _POSITION, _REQUEST, _FIRST, _STOP = range(5)


class _Program(NamedTuple):
  """One chunk and query head.

  Attributes:
    meta: Length, position, request, first and last page of chunks. [5 n]
    q: The queries. [n c h k]
    key_pages: The pool of keys. [p c hkv k]
    value_pages: The pool of values. [p c hkv k]
    page_table: The pages of each request. [requests pages]
    out: The outputs. [n c h k]
    queries: The queries, in shared memory like all that follows. [c k]
    keys: Keys of the pages under way. [stage c k]
    values: The values of the pages under way. [stage c k]
    weights: e^{s-m'}. [c c]
    arrived: One barrier per stage.
    loading: Barrier of the queries.
    window: Keys that a token sees, or None.
    config: The static sizes of the kernel.
  """

  meta: Ref
  q: Ref
  key_pages: Ref
  value_pages: Ref
  page_table: Ref
  out: Ref
  queries: Ref
  keys: Ref
  values: Ref
  weights: Ref
  arrived: Ref
  loading: Ref
  window: int | None
  config: MosaicGpuConfig

  def run(self) -> None:
    """Attends, page by page, in absolute order; none for an inactive chunk."""
    chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
    first, stop = self.meta[_FIRST, chunk], self.meta[_STOP, chunk]
    source = self.q.at[chunk, :, head]
    plgpu.copy_gmem_to_smem(source, self.queries, self.loading)
    pages = PageStream(
      *(self.key_pages, self.value_pages, self.keys, self.values),
      *(self.arrived, self._find),
    )
    pages.begin(first, stop)
    plgpu.barrier_wait(self.loading)
    self._emit(pages.reduce(first, stop, self._page, self._empty()))

  def _find(self, page: Array) -> tuple[Array, Array]:
    """The slot of a page of the request, and the key head."""
    request = self.meta[_REQUEST, lax.axis_index("chunk")]
    slot = self.page_table[request, page]
    groups = self.q.shape[2] // self.key_pages.shape[2]
    return slot, lax.div(lax.axis_index("head"), groups)

  def _empty(self) -> _Softmax:
    blocks = self.q.shape[3] // CHUNK
    return _Softmax(
      jnp.full((CHUNK,), -jnp.inf, jnp.float32),
      jnp.zeros((CHUNK,), jnp.float32),
      (jnp.zeros((CHUNK, CHUNK), jnp.float32),) * blocks,
    )

  def _page(self, page: Array, stage: Array, carry: _Softmax) -> _Softmax:
    """Takes one step of the online softmax; exp(-inf) = 0 masks keys out.

    A row that has seen no key yet, because its window begins in a later page,
    has a maximum of -inf; it subtracts 0 and stays empty.

    Args:
      page: The number of the page in its request.
      stage: The stage of the buffers that holds its keys and values.
      carry: Sums over the pages before.
    """
    scores = self._scores(page, stage)
    maximum = jnp.maximum(carry.maximum, jnp.max(scores, axis=1))
    finite = jnp.where(maximum == -jnp.inf, 0.0, maximum)
    weights = jnp.exp(scores - along_rows(finite, CHUNK))
    rescale = jnp.exp(carry.maximum - finite)
    total = carry.total * rescale + jnp.sum(weights, axis=1)
    self.weights[...] = weights.astype(jnp.bfloat16)
    plgpu.commit_smem()
    out = []
    for index, known in enumerate(carry.out):
      columns = pl.ds(index * CHUNK, CHUNK)
      values = self.values.at[stage, :, columns]
      added = dot([(self.weights, values)], (CHUNK, CHUNK))
      out.append(known * along_rows(rescale, CHUNK) + added)
    return _Softmax(maximum, total, tuple(out))

  def _scores(self, page: Array, stage: Array) -> Float32[Array, "c c"]:
    """Q K^T, -inf where a query does not see a key; clears absent values.

    Only the last page can have fewer keys than rows. What stands there behind
    them may be NaN, and 0 times it too.

    Args:
      page: The number of the page in its request.
      stage: The stage of the buffers that holds its keys and values.
    """
    chunk = lax.axis_index("chunk")
    position, length = self.meta[_POSITION, chunk], self.meta[_LENGTH, chunk]
    exist = position + length - page * CHUNK
    pl.when(exist < CHUNK)(
      lambda: algebra.clear_padding(self.values.at[stage], exist)
    )
    keys = self.keys.at[stage]
    scores = dot_transposed(self.queries, keys, CHUNK, self.config)
    row, column = indices()
    query, key = position + row, page * CHUNK + column
    seen = (key <= query) & (column < exist)
    if self.window is not None:
      seen &= key > query - self.window
    return jnp.where(seen, scores, -jnp.inf)

  def _emit(self, carry: _Softmax) -> None:
    """Writes o / l, and zeros at padding, whose queries may be anything."""
    chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
    row, _ = indices()
    total = jnp.where(carry.total == 0, 1.0, carry.total)
    for index, out in enumerate(carry.out):
      out = out / along_rows(total, CHUNK)
      real = row < self.meta[_LENGTH, chunk]
      columns = pl.ds(index * CHUNK, CHUNK)
      self.out[chunk, :, head, columns] = jnp.where(real, out, 0.0)
