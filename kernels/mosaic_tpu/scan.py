"""The packed scan as one Mosaic kernel: restore, scan, capture on a TPU.

The meaning is that of `chunks.packed_scan`. The grid is (blocks, n): a block is
a part of the state that needs nothing of the rest (heads, channels), and the
chunks of a block run in order, the carry in VMEM between them:

    carry <- pool[read]  (by DMA; zeros at ZERO; as it is at CARRY)
    y, carry <- cell(carry, xs[i])      unless length is 0
    pool[write] <- carry (by DMA, while the next chunk is computed)

The pool stays in HBM, is aliased to the result, and is touched only in the
slots that the chunks name. A kernel takes it in the order of its axes. States
with v below 128 do not fill the lanes of a register; XLA lays them out in
another order, and puts a copy of the pool on both sides of the kernel unless
the program is compiled for pools of `Layout((0, 1, 2, 3))`, which is twice the
memory at v = 64. The programs of a model are (`runtime/in_place.py`).
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from sparse_prefix_jax.kernels import implementations
from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Chunks

Ref: TypeAlias = Any
"""A block in VMEM, or an array in HBM."""

Cell: TypeAlias = Callable[[Ref, Sequence[Ref], Ref, Array], None]
"""`(carry, xs, y, length)`: advances the carry in place and writes y."""


@dataclasses.dataclass(frozen=True)
class Config(implementations.Config):
  """Static choices of a packed scan on TPU.

  Attributes:
    block: Value heads or channels that one grid step advances; divides their
      number. Heads come as whole groups of a key head or as a part of one.
  """

  name: ClassVar[str] = "mosaic_tpu"
  platform: ClassVar[str | None] = "tpu"
  tunable: ClassVar[Mapping[str, Sequence[int]]] = types.MappingProxyType(
    {"block": (1, 2, 4, 8, 128, 256, 512, 1024, 2048)}
  )
  block: int = 1


class Operand(NamedTuple):
  """An array and how the grid cuts it.

  Attributes:
    array: With n chunks first if `chunked`; of a pool, its slots first. For the
      result, its shape and type.
    split: The axis that the blocks share out; None gives the whole to each.
    chunked: Whether a chunk sees its own entry of the first axis, without it.
  """

  array: Any
  split: int | None
  chunked: bool = True


class _Scalars(NamedTuple):
  """What the scalar core reads ahead of every chunk. [n] each.

  Attributes:
    read: The slot to resume from, ZERO or CARRY.
    write: The slot that receives the state, or NONE.
    length: How many tokens are real.
    source: The chunk whose inputs are fetched: an inactive one names the last
      active one before it, whose inputs are there already.
  """

  read: Ref
  write: Ref
  length: Ref
  source: Ref


def packed_scan(
  cell: Cell,
  xs: Sequence[Operand],
  y: Operand,
  pool: Operand,
  chunks: Chunks,
  *,
  blocks: int,
  config: Config,
  name: str,
  in_place: bool = True,
) -> tuple[Array, Array]:
  """Restores, scans and captures in one kernel.

  Args:
    cell: What one chunk does to the carry, whose shape is that of one slot's
      block: [1 ...].
    xs: Inputs.
    y: Shape of the outputs; those of inactive chunks are zero.
    pool: The slots [s ...]; captured states appear in the result.
    chunks: What to read, write and advance.
    blocks: Number of blocks; divides every axis that is split, or is a
      multiple of its length, and several blocks share an entry.
    config: Parameters for the interpreter.
    name: Name of the kernel, in profiles.
    in_place: False for pools of small slots of any layout: XLA gathers the
      slots and scatters them, and the kernel works on a pool of n.

  Returns:
    y [n ...] and the pool.
  """
  call = functools.partial(
    _pallas_call, cell, xs, y, blocks=blocks, config=config, name=name
  )
  if in_place:
    return call(pool, chunks)
  n = chunks.read.shape[0]
  # Chunk i reads and writes slot i of n: its state is there from the start, and
  # what it captures stays there.
  out, few = call(
    pool._replace(array=_gather(pool.array, chunks.read)),
    chunks._replace(
      read=jnp.where(chunks.read >= 0, jnp.arange(n), chunks.read),
      write=jnp.where(chunks.write >= 0, jnp.arange(n), chunks.write),
    ),
  )
  return out, _scatter(pool.array, few, chunks.write)


def _gather(pool: Array, read: Int32[Array, "n"]) -> Array:
  """Gathers slots [n ...] of the pool; any stands at ZERO and CARRY.

  XLA keeps arrays like [s, few, d] with the slots next to d, and so does the
  loop: with the slots first in it, it would begin with a copy of the pool.
  """
  pool = pool.swapaxes(0, 1)

  def take(i: Array, few: Array) -> Array:
    state = lax.dynamic_slice_in_dim(pool, jnp.maximum(read[i], 0), 1, 1)
    return lax.dynamic_update_slice_in_dim(few, state, i, 1)

  n = read.shape[0]
  few = jnp.zeros((pool.shape[0], n, *pool.shape[2:]), pool.dtype)
  return lax.fori_loop(0, n, take, few).swapaxes(0, 1)


def _scatter(pool: Array, few: Array, write: Int32[Array, "n"]) -> Array:
  """Writes few[i] to slot write[i] of the pool; NONE changes no bit."""
  pool, few = (x.swapaxes(0, 1) for x in (pool, few))

  def put(i: Array, pool: Array) -> Array:
    slot = jnp.maximum(write[i], 0)
    held = lax.dynamic_slice_in_dim(pool, slot, 1, 1)
    state = lax.dynamic_slice_in_dim(few, i, 1, 1)
    state = jnp.where(write[i] == NONE, held, state)
    return lax.dynamic_update_slice_in_dim(pool, state, slot, 1)

  return lax.fori_loop(0, write.shape[0], put, pool).swapaxes(0, 1)


def _pallas_call(
  cell: Cell,
  xs: Sequence[Operand],
  y: Operand,
  pool: Operand,
  chunks: Chunks,
  *,
  blocks: int,
  config: Config,
  name: str,
) -> tuple[Array, Array]:
  """Calls the kernel, in place in its pool, as `packed_scan` is called."""
  n = chunks.read.shape[0]
  active = jnp.where(chunks.length > 0, jnp.arange(n), 0)
  scalars = _Scalars(
    chunks.read, chunks.write, chunks.length, lax.cummax(active)
  )
  block_of = functools.partial(_block_spec, blocks=blocks)
  in_place = pl.BlockSpec(memory_space=pl.ANY)
  carry = (1, *_block_shape(pool, blocks)[1:])
  return pl.pallas_call(
    functools.partial(_kernel, cell, pool.split, n),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(blocks, n),
      in_specs=[*(block_of(x, fetched=True) for x in xs), in_place],
      out_specs=[block_of(y, fetched=False), in_place],
      scratch_shapes=[
        pltpu.VMEM(carry, pool.array.dtype),
        pltpu.VMEM(carry, pool.array.dtype),
        pltpu.SemaphoreType.DMA,
        pltpu.SemaphoreType.DMA,
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(y.array.shape, y.array.dtype),
      jax.ShapeDtypeStruct(pool.array.shape, pool.array.dtype),
    ],
    input_output_aliases={len(scalars) + len(xs): 1},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary")
    ),
    interpret=config.interpret or False,
    name=name,
  )(*scalars, *(x.array for x in xs), pool.array)


def _block_shape(operand: Operand, blocks: int) -> tuple[int, ...]:
  """Shape of what one block has of the operand, first axis included."""
  shape = list(operand.array.shape)
  if operand.split is not None:
    shape[operand.split] = max(shape[operand.split] // blocks, 1)
  return tuple(shape)


def _block_spec(operand: Operand, blocks: int, fetched: bool) -> pl.BlockSpec:
  """The block of grid step (block, i), without the axis of chunks.

  Args:
    operand: An input or the outputs.
    blocks: Number of blocks.
    fetched: Inputs follow `source`, so that an inactive chunk names the block
      that is there already and nothing is fetched. Outputs are each their own.
  """
  shape: list[Any] = list(_block_shape(operand, blocks))
  if operand.chunked:
    shape[0] = None
  sharing = 1
  if operand.split is not None:
    sharing = max(blocks // operand.array.shape[operand.split], 1)

  def index(block: Array, i: Array, *scalars: Ref) -> tuple[Any, ...]:
    at: list[Any] = [0] * len(shape)
    if operand.split is not None:
      at[operand.split] = block // sharing
    if operand.chunked:
      at[0] = _Scalars(*scalars).source[i] if fetched else i
    return tuple(at)

  return pl.BlockSpec(tuple(shape), index)


def _kernel(cell: Cell, split: int | None, n: int, *refs: Ref) -> None:
  """One chunk of one block: grid step (block, i).

  Steps of one block run in order on one core, with the carry in scratch memory;
  blocks touch different parts of the slots and may run on two cores.

  The carry goes to HBM from a copy of its own, so the capture of a chunk runs
  under the computation of the next. It is waited for in that next step: at the
  end, before the copy is made anew, or before a slot is read.

  Args:
    cell: What a chunk does.
    split: Axis of the pool that the blocks share out.
    n: Chunks.
    *refs: Scalars; inputs; the pool as an input, which is not used; outputs;
      the pool; the carry and its copy; a semaphore for either direction.
  """
  scalars, refs = _Scalars(*refs[:4]), refs[4:]
  *xs, _, y, pool, carry, staged, restored, captured = refs
  block, i = pl.program_id(0), pl.program_id(1)
  read, write, length = (s[i] for s in scalars[:3])
  before = scalars.write[jnp.maximum(i - 1, 0)]
  pending, resumes = (i > 0) & (before >= 0), read >= 0

  def at(slot: Int32[Array, ""]) -> Ref:
    # A sentinel never reaches an index, whatever guards the use of it.
    where: list[Any] = [pl.ds(jnp.maximum(slot, 0), 1)]
    where += [slice(None)] * (len(carry.shape) - 1)
    if split is not None:
      width = carry.shape[split]
      where[split] = pl.ds(block * width, width)
    return pool.at[tuple(where)]

  def to_pool(slot: Int32[Array, ""]) -> Any:
    return pltpu.make_async_copy(staged, at(slot), captured)

  @pl.when(pending & resumes)
  def _() -> None:
    to_pool(before).wait()

  @pl.when(resumes)
  def _() -> None:
    copy = pltpu.make_async_copy(at(read), carry, restored)
    copy.start()
    copy.wait()

  @pl.when((read == ZERO) | ((i == 0) & ~resumes))
  def _() -> None:
    carry[...] = jnp.zeros_like(carry)

  @pl.when(length > 0)
  def _() -> None:
    cell(carry, xs, y, length)

  @pl.when(length <= 0)
  def _() -> None:
    y[...] = jnp.zeros_like(y)

  @pl.when(pending & ~resumes)
  def _() -> None:
    to_pool(before).wait()

  @pl.when(write >= 0)
  def _() -> None:
    staged[...] = carry[...]
    to_pool(write).start()

  @pl.when((write >= 0) & (i == n - 1))
  def _() -> None:
    to_pool(write).wait()
