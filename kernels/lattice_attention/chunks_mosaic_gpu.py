"""The kernel of lattice_attention on GPU: a program per chunk and query head.

Values wider than 256, of latents, take several programs of a head, each with
the scores of all channels and some of the values: a warpgroup has registers for
no more.

A program holds its 64 queries in shared memory and walks through the pages of
its request in absolute order, the next pages on their way while one is reduced,
with the online softmax in registers:

    m' = max(m, max s),  l' = l e^{m-m'} + sum e^{s-m'},
    o' = o e^{m-m'} + e^{s-m'} V

One step is one page, whatever surrounds the chunk, so its bits depend on the
tokens alone. Pages of which no query sees a key are not visited. Of most of the
others every query sees every key, and nothing is selected there. In the last
one, and in those where a window begins, scores of unseen keys are selected to
-inf and values that do not exist to zero, so free pages and padding may hold
anything. Which pages these are is decided by the place of the chunk alone.

The last chunks start first: those of a request have the most pages. Programs
of heads that share keys, and of chunks of one request, read the same pages at
about the same time: from the second on they come from the L2 cache.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Bool, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.lattice_attention.page_stream import (
  PageStream,
  clear_absent,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_rows,
  dot,
  dot_onto,
  indices,
  launch,
  new,
  tile,
)
from sparse_prefix_jax.kernels.mosaic_gpu.transposed import (
  dot_transposed,
)

_MOST_BESIDE = 128
"""Widths up to which products have registers of their own beside o."""
_MOST_VALUES = 256
"""Channels of values that a program has registers for."""

_Mask: TypeAlias = Callable[[Array, Array], Array]


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


def attend_chunks(
  q: BFloat16[Array, "n c h k"],
  pools: tuple[BFloat16[Array, "p c hkv k"], ...],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  window: int | None,
  value_width: int,
  config: MosaicGpuConfig,
  name: str,
) -> Float32[Array, "n c h v"]:
  """Computes the outputs of the chunks, which are zero past their lengths.

  Args:
    q: Queries, scaled and rotated.
    pools: Pages of keys and of values, those of the chunks among them; or of
      latents, which are both.
    chunks: Position, length and page-table row of each chunk.
    page_table: Pages of each request, in order.
    window: Keys that a token sees, or None for all before it.
    value_width: Channels v of a value.
    config: `stages` of pages.
    name: What a profile calls the kernel.
  """
  n, _, heads, width = q.shape
  meta = jnp.stack([*chunks[2:], *_pages(chunks, window)]).astype(jnp.int32)
  buffers = (
    tile(CHUNK, width),
    tuple(tile(config.stages, CHUNK, pool.shape[3]) for pool in pools),
    tile(CHUNK, CHUNK),
    plgpu.Barrier(num_arrivals=len(pools), num_barriers=config.stages),
    plgpu.Barrier(),
  )

  def body(operands: Any, results: Any, buffers: Any) -> None:
    fields: Any = *operands, *results, *buffers, window, config
    _Program(*fields).run()

  (out,) = launch(
    body,
    (meta, q, pools, page_table),
    [new(*q.shape[:3], value_width, dtype=jnp.float32)],
    buffers,
    grid={"chunk": n, "head": heads * parts_of(value_width)},
    config=config,
    name=name,
  )
  return out


def parts_of(value_width: int) -> int:
  """How many programs share the values of a head."""
  return -(-value_width // _MOST_VALUES)


_LENGTH, _POSITION, _REQUEST, _FIRST, _WHOLE, _STOP = range(6)


def _pages(
  chunks: Chunks, window: int | None
) -> tuple[Int32[Array, "n"], Int32[Array, "n"], Int32[Array, "n"]]:
  """Says which pages each chunk visits.

  Args:
    chunks: Position and length of each chunk.
    window: Keys that a token sees, or None for all before it.

  Returns:
    The first page with a key that a query of the chunk sees; the first of
    those that all of its queries see whole; and the end of the pages. The last
    one is the chunk's own, which no query but the last sees whole.
  """
  own = chunks.position // CHUNK
  stop = jnp.where(chunks.length > 0, own + 1, 0)
  if window is None:
    return jnp.zeros_like(own), jnp.zeros_like(own), stop
  first = jnp.maximum(chunks.position - window + 1, 0) // CHUNK
  # By the last query that the chunk might have: bits are not to depend on how
  # many of them are there.
  unseen = jnp.maximum(chunks.position + CHUNK - window, 0)
  whole = -(-unseen // CHUNK)
  return first, jnp.minimum(whole, jnp.maximum(stop - 1, first)), stop


class _Program(NamedTuple):
  """One chunk and query head, or a part of the values of a head.

  Attributes:
    meta: Length, position, request and pages (`_pages`) of chunks. [6 n]
    q: The queries. [n c h k]
    pools: Of keys and of values; or of latents, which are both. [p c hkv k]
    page_table: The pages of each request. [requests pages]
    out: The outputs. [n c h v]
    queries: The queries, in shared memory like all that follows. [c k]
    pages: The pages under way of each pool. [stage c k]
    weights: e^{s-m'}. [c c]
    arrived: One barrier per stage.
    loading: Barrier of the queries.
    window: Keys that a token sees, or None.
    config: The static sizes of the kernel.
  """

  meta: Ref
  q: Ref
  pools: tuple[Ref, ...]
  page_table: Ref
  out: Ref
  queries: Ref
  pages: tuple[Ref, ...]
  weights: Ref
  arrived: Ref
  loading: Ref
  window: int | None
  config: MosaicGpuConfig

  def run(self) -> None:
    """Attends, page by page, in absolute order; zeros for an inactive chunk."""
    first, stop = self.meta[_FIRST, self._chunk], self.meta[_STOP, self._chunk]
    pl.when(stop > first)(functools.partial(self._attend, first, stop))
    pl.when(stop <= first)(self._clear_out)

  def _attend(self, first: Array, stop: Array) -> None:
    """Attends to the pages of [first, stop).

    Args:
      first: The number of the first page.
      stop: The end of the pages; the last of them is the chunk's own.
    """
    source = self.q.at[self._chunk, :, self._head]
    plgpu.copy_gmem_to_smem(source, self.queries, self.loading)
    pages = PageStream(self.pools, self.pages, self.arrived, self._find)
    pages.begin(first, stop)
    plgpu.barrier_wait(self.loading)
    begins, inner, own = (
      functools.partial(self._page, mask)
      for mask in (self._before_window, None, self._behind)
    )
    whole, carry = self.meta[_WHOLE, self._chunk], self._empty()
    if self.window is not None:
      carry = pages.reduce(first, stop, begins, carry, part=(first, whole))
    carry = pages.reduce(first, stop, inner, carry, part=(whole, stop - 1))
    self._emit(pages.take(first, stop, own, stop - 1, carry))

  @property
  def _chunk(self) -> Array:
    """The chunk of this program; the last one is that of the first program."""
    return self.q.shape[0] - 1 - lax.axis_index("chunk")

  @property
  def _head(self) -> Array:
    """The query head of this program."""
    return lax.div(lax.axis_index("head"), parts_of(self.out.shape[3]))

  @property
  def _blocks(self) -> int:
    """How many times 64 channels of values this program takes."""
    width = self.out.shape[3]
    return width // parts_of(width) // CHUNK

  def _columns(self, block: int, count: int = 1) -> Any:
    """64 channels of the values of this program, or several times that many."""
    parts, columns = parts_of(self.out.shape[3]), count * CHUNK
    if parts == 1:
      return pl.ds(block * CHUNK, columns)
    part = lax.rem(lax.axis_index("head"), parts)
    first = (part * self._blocks + block) * CHUNK
    # Copies of tiles must be told that they begin at a tile.
    return pl.ds(pl.multiple_of(first, CHUNK), columns)

  def _find(self, page: Array) -> tuple[Array, Array]:
    """The slot of a page of the request, and the key head."""
    request = self.meta[_REQUEST, self._chunk]
    slot = self.page_table[request, page]
    groups = self.q.shape[2] // self.pools[0].shape[2]
    return slot, lax.div(self._head, groups)

  def _empty(self) -> _Softmax:
    return _Softmax(
      jnp.full((CHUNK,), -jnp.inf, jnp.float32),
      jnp.zeros((CHUNK,), jnp.float32),
      (jnp.zeros((CHUNK, CHUNK), jnp.float32),) * self._blocks,
    )

  def _page(
    self, mask: _Mask | None, page: Array, stage: Array, carry: _Softmax
  ) -> _Softmax:
    """Takes one step of the online softmax; exp(-inf) = 0 masks keys out.

    A row that has seen no key yet, because its window begins in a later page,
    has a maximum of -inf; it subtracts 0 and stays empty.

    Args:
      mask: `(page, stage)` -> which keys each query sees; None for all.
      page: The number of the page in its request.
      stage: The stage of the buffers that holds its keys and values.
      carry: Sums over the pages before.
    """
    keys = self.pages[0].at[stage]
    scores = dot_transposed(self.queries, keys, page, self.config)
    if mask is not None:
      scores = jnp.where(mask(page, stage), scores, -jnp.inf)
    maximum = jnp.maximum(carry.maximum, jnp.max(scores, axis=1))
    finite = maximum
    if mask is not None and self.window is not None:
      finite = jnp.where(maximum == -jnp.inf, 0.0, maximum)
    weights = jnp.exp(scores - along_rows(finite, CHUNK))
    rescale = jnp.exp(carry.maximum - finite)
    total = carry.total * rescale + jnp.sum(weights, axis=1)
    self.weights[...] = weights.astype(jnp.bfloat16)
    plgpu.commit_smem()
    out = []
    for index, known in enumerate(carry.out):
      values = self.pages[-1].at[stage, :, self._columns(index)]
      known = known * along_rows(rescale, CHUNK)
      out.append(self._plus(known, values))
    return _Softmax(maximum, total, tuple(out))

  def _plus(
    self, known: Float32[Array, "c 64"], values: Ref
  ) -> Float32[Array, "c 64"]:
    """Adds P V to some columns of o.

    A sum of float32 beside the product loses less than one in the accumulator,
    which is cut off at each of its steps. Of wide heads it finds no registers.

    Args:
      known: Columns of o.
      values: The same columns of a page. [c 64]
    """
    pairs = [(self.weights, values)]
    if self._blocks * CHUNK > _MOST_BESIDE:
      return dot_onto(known, pairs, self.config)
    return known + dot(pairs, (CHUNK, CHUNK))

  def _before_window(self, page: Array, stage: Array) -> Bool[Array, "c c"]:
    """Which keys of a page before the chunk are in the windows of its queries.

    Args:
      page: The number of the page in its request.
      stage: Does not matter.
    """
    del stage
    assert self.window is not None
    row, column = indices()
    query = self.meta[_POSITION, self._chunk] + row
    return page * CHUNK + column > query - self.window

  def _behind(self, page: Array, stage: Array) -> Bool[Array, "c c"]:
    """Which keys of the chunk's own page each query sees; clears absent values.

    Only this page can have fewer keys than rows. What stands there behind them
    may be NaN, and 0 times it too.

    Args:
      page: The number of the page in its request.
      stage: The stage of the buffers that holds its keys and values.
    """
    exist = self.meta[_LENGTH, self._chunk]
    clear_absent(self.pages[-1], stage, exist)
    row, column = indices()
    seen = (column <= row) & (column < exist)
    if self.window is not None:
      seen &= self._before_window(page, stage)
    return seen

  def _clear_out(self) -> None:
    """Writes the outputs of an inactive chunk, which are zeros."""
    columns = self._columns(0, self._blocks)
    zeros = jnp.zeros((CHUNK, self._blocks * CHUNK), jnp.float32)
    self.out[self._chunk, :, self._head, columns] = zeros

  def _emit(self, carry: _Softmax) -> None:
    """Writes o / l, and zeros at padding, whose queries may be anything."""
    chunk, head = self._chunk, self._head
    row, _ = indices()
    total = jnp.where(carry.total == 0, 1.0, carry.total)
    for index, out in enumerate(carry.out):
      out = out / along_rows(total, CHUNK)
      real = row < self.meta[_LENGTH, chunk]
      self.out[chunk, :, head, self._columns(index)] = jnp.where(real, out, 0.0)
