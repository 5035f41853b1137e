"""The first kernel of lattice_attention_step on GPU: a program per range.

See `decode_mosaic_gpu.py`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float32, Int32

from sparse_prefix_jax.kernels.lattice_attention.page_stream import (
  PageStream,
  clear_absent,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_columns,
  as_accumulator,
  dot,
  dot_onto,
  launch,
  new,
  split,
  tile,
)
from sparse_prefix_jax.kernels.mosaic_gpu.transposed import (
  dot_transposed,
  store_transposed,
  with_transposed,
)

RANGE_PAGES = 8
"""Pages of a range. It decides in which order keys are summed, so it is the
same for all shapes; page tables are a multiple of it wide."""
PARTS = 2
"""How many parts the weights have, as operands of products."""
_MOST_BESIDE = 256 * 24
"""Elements of o up to which a product has registers of its own beside it."""
_ENOUGH_PROGRAMS = 2048
"""So many programs keep the largest device busy; with more ranges than that, a
program takes several, one after another."""


class Row(NamedTuple):
  """What the programs of a row ask, one number per row.

  Attributes:
    position: Of its token: the last key that it sees.
    first: The first page that holds a key that it sees.
    stop: The end of these pages; 0 for an inactive row.
  """

  position: Int32[Array, "b"]
  first: Int32[Array, "b"]
  stop: Int32[Array, "b"]


def ranges_of(row: Row, index: Array) -> tuple[Array, Array]:
  """The ranges [first, stop) that hold keys of a row; none if it is inactive.

  Args:
    row: References to what is known of all rows.
    index: The number of the row.
  """
  stop = lax.div(row.stop[index] + RANGE_PAGES - 1, RANGE_PAGES)
  return lax.div(row.first[index], RANGE_PAGES), stop


def attend(
  q: BFloat16[Array, "b groups g k"],
  pools: tuple[BFloat16[Array, "p c hkv k"], ...],
  row: Row,
  page_table: Int32[Array, "b pages"],
  *,
  window: int | None,
  value_width: int,
  config: MosaicGpuConfig,
  name: str,
) -> list[Array]:
  """Computes o, and m and l, of the ranges that hold keys of a row.

  Args:
    q: Queries, scaled and rotated, in groups of heads that share a key head,
      padded with zeros; one group for each key head or more.
    pools: Pages of keys and of values; or of latents, which are both.
    row: Which pages a row sees.
    page_table: Pages of each row, in order.
    window: Keys that a token sees, or None for all before it.
    value_width: Channels v of a value.
    config: `stages` of pages.
    name: What a profile calls the kernel.

  Returns:
    o, transposed, and m and l, in every row of a tile: [b groups ranges v g]
    and [b groups ranges 2*64 g]. Those of other ranges hold anything.
  """
  b, groups, columns, width = q.shape
  ranges = page_table.shape[1] // RANGE_PAGES
  lead, stages = (b, groups, ranges), config.stages
  programs = min(ranges, -(-_ENOUGH_PROGRAMS // (b * groups)))
  buffers = (
    tile(columns, width),
    tuple(tile(stages, CHUNK, pool.shape[3]) for pool in pools),
    (tile(columns, CHUNK),) * PARTS,
    plgpu.Barrier(num_arrivals=len(pools), num_barriers=stages),
    plgpu.Barrier(),
  )

  def body(operands: Any, results: Any, buffers: Any) -> None:
    fields: Any = *operands, *results, *buffers, programs, window, config
    _Program(*fields).run()

  return launch(
    body,
    (row, q, pools, page_table),
    [
      new(*lead, value_width, columns, dtype=jnp.float32),
      new(*lead, 2 * CHUNK, columns, dtype=jnp.float32),
    ],
    buffers,
    grid={"row": b, "head": groups, "range": programs},
    config=config,
    name=name,
  )


class _Softmax(NamedTuple):
  """The carry of the online softmax over the pages of a range.

  Attributes:
    maximum: m, -inf before the first key. [g]
    total: l. [g]
    out: o, transposed. [v g]
  """

  maximum: Array
  total: Array
  out: Array


class _Program(NamedTuple):
  """A group of query heads of one row, and some ranges.

  Attributes:
    row: Which pages a row sees.
    q: The queries. [b groups g k]
    pools: Of keys and of values; or of latents, which are both. [p c hkv k]
    page_table: The pages of each row. [b pages]
    out: o of each range. [b groups ranges v g]
    sums: m and l of each range. [b groups ranges 2*64 g]
    queries: The queries, in shared memory like all that follows. [g k]
    pages: The pages under way of each pool. [stage c k]
    weights: Each part of e^{s-m'}. [g c]
    arrived: One barrier per stage.
    loading: Barrier of the queries.
    programs: How many share the ranges of a row.
    window: Keys that a token sees, or None.
    config: The static sizes of the kernel.
  """

  row: Row
  q: Ref
  pools: tuple[Ref, ...]
  page_table: Ref
  out: Ref
  sums: Ref
  queries: Ref
  pages: tuple[Ref, ...]
  weights: tuple[Ref, ...]
  arrived: Ref
  loading: Ref
  programs: int
  window: int | None
  config: MosaicGpuConfig

  def run(self) -> None:
    """Takes every so many-th range that holds keys of the row, if any."""
    row, head = lax.axis_index("row"), lax.axis_index("head")
    first, stop = ranges_of(self.row, row)
    first = first + lax.axis_index("range")

    @pl.when(first < stop)
    def _() -> None:
      source = self.q.at[row, head]
      plgpu.copy_gmem_to_smem(source, self.queries, self.loading)
      plgpu.barrier_wait(self.loading)
      step = self.programs
      count = lax.div(stop - first + step - 1, step)
      lax.fori_loop(0, count, lambda i, _: self._range(first + i * step), None)

  def _range(self, index: Array) -> None:
    """Attends to the pages of a range, in absolute order; emits m, l and o."""
    row = lax.axis_index("row")
    first = lax.max(self.row.first[row], index * RANGE_PAGES)
    stop = lax.min(self.row.stop[row], (index + 1) * RANGE_PAGES)
    pages = PageStream(self.pools, self.pages, self.arrived, self._find)
    pages.begin(first, stop)
    self._emit(index, pages.reduce(first, stop, self._page, self._empty()))

  def _find(self, page: Array) -> tuple[Array, Array]:
    """The slot of a page of the row, and the key head."""
    slot = self.page_table[lax.axis_index("row"), page]
    shared = self.q.shape[1] // self.pools[0].shape[2]
    return slot, lax.div(lax.axis_index("head"), shared)

  def _empty(self) -> _Softmax:
    width, columns = self.out.shape[3:]
    return _Softmax(
      jnp.full((columns,), -jnp.inf, jnp.float32),
      jnp.zeros((columns,), jnp.float32),
      jnp.zeros((width, columns), jnp.float32),
    )

  def _page(self, page: Array, stage: Array, carry: _Softmax) -> _Softmax:
    """Takes one step of the online softmax; exp(-inf) = 0 masks keys out.

    Every page that is visited holds a key that the row sees, so the maximum is
    finite.

    Args:
      page: The number of the page in its sequence.
      stage: The stage of the buffers that holds its keys and values.
      carry: Sums over the pages before.
    """
    scores = self._scores(page, stage)
    maximum = jnp.maximum(carry.maximum, jnp.max(scores, axis=0))
    weights = jnp.exp(scores - along_columns(maximum, CHUNK))
    rescale = jnp.exp(carry.maximum - maximum)
    total = carry.total * rescale + jnp.sum(weights, axis=0)
    for buffer, part in zip(self.weights, split(weights, PARTS), strict=True):
      store_transposed(buffer, part, self.config)
    plgpu.commit_smem()
    out = carry.out * along_columns(rescale, carry.out.shape[0])
    return _Softmax(maximum, total, self._plus(out, stage))

  def _plus(self, out: Float32[Array, "v g"], stage: Array) -> Array:
    """Adds V^T P^T; see `chunks_mosaic_gpu.py` on sums in the accumulator.

    Args:
      out: o, rescaled.
      stage: The stage of the buffers that holds the page.
    """
    width, columns = out.shape

    def added(values: Ref, *parts: Ref) -> Array:
      pairs = [(values, part) for part in parts]
      if width * columns > _MOST_BESIDE:
        return dot_onto(out, pairs, self.config)
      return out + dot(pairs, (width, columns))

    # The values of a latent are its first channels.
    values = self.pages[-1].at[stage, :, pl.ds(0, width)]
    return with_transposed([values, *self.weights], added, self.config)

  def _scores(self, page: Array, stage: Array) -> Float32[Array, "c g"]:
    """K q^T, -inf where the row does not see a key; clears absent values.

    Only the last page can have fewer keys than rows. What stands there behind
    them may be NaN, and 0 times it too.

    Args:
      page: The number of the page in its sequence.
      stage: The stage of the buffers that holds its keys and values.
    """
    position = self.row.position[lax.axis_index("row")]
    exist = position + 1 - page * CHUNK
    clear_absent(self.pages[-1], stage, exist)
    shape = (CHUNK, self.queries.shape[0])
    keys = self.pages[0].at[stage]
    scores = dot_transposed(keys, self.queries, page, self.config)
    token = lax.broadcasted_iota(jnp.int32, shape, 0)
    seen = token < exist
    if self.window is not None:
      seen &= token >= exist - self.window
    return jnp.where(seen, scores, -jnp.inf)

  def _emit(self, index: Array, carry: _Softmax) -> None:
    """Writes o, and m and l as tiles: what the second kernel copies."""
    place = lax.axis_index("row"), lax.axis_index("head"), index
    self.out[(*place, slice(None), slice(None))] = carry.out
    for which, vector in enumerate((carry.maximum, carry.total)):
      whole = as_accumulator(along_columns(vector, CHUNK), self.config)
      rows = pl.ds(which * CHUNK, CHUNK)
      self.sums[(*place, rows, slice(None))] = whole
