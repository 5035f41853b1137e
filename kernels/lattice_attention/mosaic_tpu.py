"""Lattice attention as a Mosaic TPU kernel: one grid step per row of a call.

A row is a packed chunk, or one token of a running sequence.

The kernel gathers the pages of a block of keys by DMA, the next block while one
is reduced, and carries the online softmax of every key head in VMEM:

    m' = max(m, max s),  l' = l e^{m-m'} + sum e^{s-m'},
    o' = o e^{m-m'} + e^{s-m'} V

Blocks are visited in absolute order, as many as the chunk needs; pages that
hold none of its keys are not fetched, and what is masked is selected to zero.

The ragged paged attention that comes with JAX takes keys and values interleaved
in one pool, products in one bfloat16 pass and its output in the dtype of q, so
it cannot stand here.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import implementations
from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.kernels.mosaic_tpu.products import dot
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Ref


@dataclasses.dataclass(frozen=True)
class Config(implementations.Config):
  """Static choices of lattice attention on TPU.

  Attributes:
    vmem_limit_bytes: What two blocks of keys and values, the queries and the
      softmax of all heads may take.
  """

  name: ClassVar[str] = "mosaic_tpu"
  platform: ClassVar[str | None] = "tpu"
  tunable: ClassVar[Mapping[str, Sequence[int]]] = types.MappingProxyType(
    {"vmem_limit_bytes": tuple(x * 2**20 for x in (16, 32, 48, 64, 96))}
  )
  vmem_limit_bytes: int = 48 * 2**20


@dataclasses.dataclass(frozen=True)
class AttentionSizes:
  """Static sizes and orders of one call.

  Attributes:
    queries: Tokens of a row: those of a chunk, or one.
    chunk: Tokens of a page.
    heads: Key heads.
    block_pages: Pages of one block of keys.
    tokens_first: Whether pages are [c hkv k] rather than [hkv c k].
    window: Keys that a token sees, or None for all before it.
    precision: Precision of the products.
    value_width: Leading channels of a key that are its value, where one pool
      has both; None where there are two.
  """

  queries: int
  chunk: int
  heads: int
  block_pages: int
  tokens_first: bool
  window: int | None
  precision: lax.Precision | None
  value_width: int | None = None

  @classmethod
  def of_call(
    cls,
    q: Float[Array, "n *rows k"],
    pools: tuple[Float[Array, "p c hkv k"], ...],
    *,
    queries: int,
    block_pages: int,
    window: int | None,
    precision: lax.Precision,
    value_width: int | None,
  ) -> "AttentionSizes":
    """What follows from the arrays of a call, and its choices.

    Args:
      q: Queries.
      pools: Pages of keys and of values, or of latents.
      queries: As in the attributes.
      block_pages: As in the attributes.
      window: As in the attributes.
      precision: Precision asked for.
      value_width: As in the attributes.
    """
    (_, chunk, heads, width), dtype = pools[0].shape, pools[0].dtype
    # A product of bfloat16 is exact in float32: one pass has all of it.
    exact = q.dtype == dtype == jnp.bfloat16
    return cls(
      queries,
      chunk,
      heads,
      block_pages,
      fit.rows_lie_together(heads, dtype, width),
      window,
      None if exact else precision,
      value_width,
    )

  @property
  def keys(self) -> int:
    """Keys of one block."""
    return self.block_pages * self.chunk

  def of_head(
    self, blocks: Sequence[Ref], head: int
  ) -> tuple[Float[Array, "keys k"], Float[Array, "keys v"]]:
    """Keys and values of one head of a block of pages, one of each pool."""
    both = [
      (block[:, :, head] if self.tokens_first else block[:, head]).reshape(
        self.keys, -1
      )
      for block in blocks
    ]
    return both[0], both[-1][:, : self.value_width]


class _Keys(NamedTuple):
  """The keys that a chunk sees: positions [start, end).

  Attributes:
    position: Position of its first query.
    start: First key that any of its queries sees.
    end: Tokens that exist.
  """

  position: Array
  start: Array
  end: Array

  def has(self, key: Array) -> Array:
    """Whether some query may see the key."""
    return (key >= self.start) & (key < self.end)

  def some_in(self, first: Array, count: int) -> Array:
    """Whether some query may see one of `count` keys."""
    return (first + count > self.start) & (first < self.end)


def attend(
  q: Float[Array, "n hkv rows k"],
  pools: tuple[Float[Array, "p c hkv k"], ...],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  sizes: AttentionSizes,
  config: Config,
  name: str,
) -> Float32[Array, "n hkv rows v"]:
  """The kernel; row r of a key head is token r % queries of the chunk.

  Args:
    q: Queries; those of a group of heads are rows of one product.
    pools: Keys and values of all tokens, or latents, those of the call
      included.
    chunks: Position, length and row of the page table of each chunk.
    page_table: Pages of each request, in order.
    sizes: Sizes of the call.
    config: Parameters for the compiler or the interpreter.
    name: What a profile calls the kernel.
  """
  scalars = chunks.position, chunks.length, chunks.request, page_table
  softmax = (*q.shape[1:3], fit.LANES)
  if not sizes.tokens_first:
    # XLA keeps the tokens of a head of such a page together: nothing moves.
    pools = tuple(x.swapaxes(1, 2) for x in pools)
  block = pltpu.VMEM(
    (2, sizes.block_pages, *pools[0].shape[1:]), pools[0].dtype
  )
  shape = *q.shape[:3], sizes.value_width or q.shape[3]
  own, result = (
    pl.BlockSpec((None, *x[1:]), lambda i, *_: (i, 0, 0, 0))
    for x in (q.shape, shape)
  )
  return pl.pallas_call(
    functools.partial(_kernel, sizes),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(q.shape[0],),
      in_specs=[own, *(pl.BlockSpec(memory_space=pl.ANY) for _ in pools)],
      out_specs=result,
      scratch_shapes=[
        *(block for _ in pools),
        pltpu.SemaphoreType.DMA((len(pools), 2)),
        pltpu.VMEM(softmax, jnp.float32),
        pltpu.VMEM(softmax, jnp.float32),
      ],
    ),
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",),
      vmem_limit_bytes=config.vmem_limit_bytes,
    ),
    interpret=config.interpret or False,
    name=name,
  )(*scalars, q, *pools)


def _kernel(sizes: AttentionSizes, *refs: Ref) -> None:
  """One chunk: visits its blocks, fetching the next while one is reduced.

  Block i of the absolute grid goes to buffer i % 2. Its copies are started
  after the last use of that buffer and awaited before the next, page by page,
  under the same condition. What stands where a page was not fetched, NaN too,
  is selected away by `_accumulate`.
  """
  position_ref, length_ref, request_ref, table, q, *rest = refs
  count = 1 if sizes.value_width else 2
  pools, (out, *rest) = rest[:count], rest[count:]
  *buffers, semaphores, maximum, total = rest
  i = pl.program_id(0)
  position, length, request = position_ref[i], length_ref[i], request_ref[i]
  end = jnp.where(length > 0, position + length, 0)
  start = 0 if sizes.window is None else position - sizes.window + 1
  keys = _Keys(position, jnp.maximum(start, 0), end)
  first, blocks = keys.start // sizes.keys, pl.cdiv(end, sizes.keys)

  def pages(block: Array, act: str) -> None:
    """Starts or awaits the copies of the pages that hold keys of a block."""
    for index in range(sizes.block_pages):
      page = block * sizes.block_pages + index

      @pl.when(keys.some_in(page * sizes.chunk, sizes.chunk))
      def _(page: Array = page, index: int = index) -> None:
        for which, (pool, buffer) in enumerate(zip(pools, buffers)):
          copy = pltpu.make_async_copy(
            pool.at[table[request, page]],
            buffer.at[block % 2, index],
            semaphores.at[which, block % 2],
          )
          getattr(copy, act)()

  out[...] = jnp.zeros_like(out)
  total[...] = jnp.zeros_like(total)
  maximum[...] = jnp.full_like(maximum, -jnp.inf)

  @pl.when(first < blocks)
  def _() -> None:
    pages(first, "start")

  def reduce(block: Array, _: None) -> None:
    @pl.when(block + 1 < blocks)
    def _() -> None:
      pages(block + 1, "start")

    pages(block, "wait")
    for head in range(sizes.heads):
      k, v = sizes.of_head([x.at[block % 2] for x in buffers], head)
      softmax = maximum.at[head], total.at[head], out.at[head]
      _accumulate(sizes, keys, block * sizes.keys, q[head], k, v, softmax)

  lax.fori_loop(first, blocks, reduce, None)
  for head in range(sizes.heads):
    # Rows of inactive chunks, and of padding outside the window, stay zero.
    sum_of_weights = total[head, :, :1]
    out[head] /= jnp.where(sum_of_weights == 0, 1.0, sum_of_weights)


def _accumulate(
  sizes: AttentionSizes,
  keys: _Keys,
  first: Array,
  q: Float[Array, "rows k"],
  k: Float[Array, "keys k"],
  v: Float[Array, "keys v"],
  softmax: tuple[Ref, Ref, Ref],
) -> None:
  """Adds one block of keys to the softmax of one key head.

  A row that has seen no key yet, because its window begins in a later block,
  has a maximum of -inf; it subtracts 0 and stays empty.

  Args:
    sizes: Sizes of the call.
    keys: Which keys the chunk sees.
    first: Position of the first key of the block.
    q: Queries of the chunk.
    k: Keys of the block; those that were not fetched hold anything.
    v: Values of the block, likewise.
    softmax: Maximum, total (each along the lanes) and output; updated.
  """
  maximum_ref, total_ref, out_ref = softmax
  visible = keys.has(first + algebra.iota((sizes.keys, 1), 0))
  v = jnp.where(visible, v, jnp.zeros_like(v))
  shape = q.shape[0], sizes.keys
  key = first + algebra.iota(shape, 1)
  row = keys.position + algebra.iota(shape, 0) % sizes.queries
  seen = (key <= row) & keys.has(key)
  if sizes.window is not None:
    seen &= key > row - sizes.window
  scores = dot(q, k, sizes.precision, (1, 1))
  scores = jnp.where(seen, scores, -jnp.inf)
  before = maximum_ref[:, :1]
  maximum = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
  finite = jnp.where(maximum == -jnp.inf, 0.0, maximum)
  rescale, weights = jnp.exp(before - finite), jnp.exp(scores - finite)
  total = jnp.sum(weights, axis=1, keepdims=True)
  total = total_ref[:, :1] * rescale + total
  update = dot(weights.astype(v.dtype), v, sizes.precision)
  out_ref[...] = out_ref[...] * rescale + update
  maximum_ref[...] = jnp.broadcast_to(maximum, maximum_ref.shape)
  total_ref[...] = jnp.broadcast_to(total, total_ref.shape)
