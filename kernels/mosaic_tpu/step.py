"""One token of running sequences as one Mosaic kernel: read, advance, write.

The grid is (cores, rows, parts), and runs in that order: a step advances a few
rows, or some heads of one. Its states come from their slots by DMA while the
step before is computed, are advanced where they lie, and leave while the next
is computed:

    pool[read] ─▶ states 0 ─▶ cell ─▶ pool[write]
                  states 1    (on their way in, or being computed,
                  states 2     or on their way out)

So a state is read once and written once. The pool stays in HBM, is aliased to
the result, and only slots that are named are touched: ZERO reads none, and NONE
writes none. No row reads a slot that another one writes, so nothing has to be
waited for but a state's own copies.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from sparse_prefix_jax.kernels import implementations
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Operand, Ref

StepCell: TypeAlias = Callable[[Ref, Sequence[Ref], Ref], None]
"""`(states, xs, y)`: advances states in place by a token and writes y."""

_BUFFERS = 3


@dataclasses.dataclass(frozen=True)
class StepConfig(implementations.Config):
  """Static choices of a step of one token on TPU.

  Attributes:
    block: Value heads or channels that one grid step advances; divides their
      number. Heads come as whole groups of a key head or as a part of one.
    cores: How many share the blocks out; divides their number.
  """

  name: ClassVar[str] = "mosaic_tpu"
  platform: ClassVar[str | None] = "tpu"
  tunable: ClassVar[Mapping[str, Sequence[int]]] = types.MappingProxyType(
    {"block": (1, 2, 4, 8, 16, 32, 128, 256, 512, 1024, 2048)}
  )
  block: int = 1
  cores: int = 1


class StepGrid(NamedTuple):
  """How the work of a call is cut.

  Attributes:
    cores: Cores that share the blocks out.
    rows: Steps over rows.
    parts: Blocks of a core.
    together: Rows that one step advances.
  """

  cores: int
  rows: int
  parts: int
  together: int

  @property
  def sizes(self) -> tuple[int, int, int]:
    """Lengths of the axes of the grid."""
    return self.cores, self.rows, self.parts

  def block(self, core: Array, part: Array) -> Array:
    """The block of a step."""
    return core * self.parts + part


def advance(
  cell: StepCell,
  xs: Sequence[Operand],
  y: Operand,
  pool: Operand,
  slots: tuple[Int32[Array, "b"], Int32[Array, "b"]],
  grid: StepGrid,
  config: StepConfig,
  name: str,
) -> tuple[Array, Array]:
  """Advances b rows by one token in one launch, with the pool in place.

  Args:
    cell: What a token does to the states of a step, [together ...] each.
    xs: Inputs [b ...]; or the same for all rows, if not `chunked`. Several
      blocks share an entry if there are more of them.
    y: Shape of the outputs [b ...].
    pool: The slots [s ...], donated.
    slots: What each row reads, a slot or ZERO, and writes, a slot that no other
      row reads or writes, or NONE.
    grid: How rows and blocks are cut.
    config: Parameters for the interpreter.
    name: What a profile calls the kernel.

  Returns:
    y and the pool.
  """
  spec = functools.partial(_spec, grid)
  in_place = pl.BlockSpec(memory_space=pl.ANY)
  blocks = grid.cores * grid.parts
  states = _BUFFERS, grid.together, *_cut(pool, blocks)[1:]
  return pl.pallas_call(
    functools.partial(_kernel, cell, pool.split, grid),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(slots),
      grid=grid.sizes,
      in_specs=[*map(spec, xs), in_place],
      out_specs=[spec(y), in_place],
      scratch_shapes=[
        pltpu.VMEM(states, pool.array.dtype),
        pltpu.SemaphoreType.DMA((2, _BUFFERS)),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(x.array.shape, x.array.dtype) for x in (y, pool)
    ],
    input_output_aliases={len(slots) + len(xs): 1},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary")
    ),
    interpret=config.interpret or False,
    name=name,
  )(*slots, *(x.array for x in xs), pool.array)


def _cut(operand: Operand, blocks: int) -> list[int]:
  """Shape of what one block has of the operand, first axis included."""
  shape = list(operand.array.shape)
  if operand.split is not None:
    shape[operand.split] = max(shape[operand.split] // blocks, 1)
  return shape


def _spec(grid: StepGrid, operand: Operand) -> pl.BlockSpec:
  """What a step sees of an input or of the outputs."""
  blocks = grid.cores * grid.parts
  shape, sharing = _cut(operand, blocks), 1
  if operand.chunked:
    shape[0] = grid.together
  if operand.split is not None:
    sharing = max(blocks // operand.array.shape[operand.split], 1)

  def index(core: Array, row: Array, part: Array, *_: Ref) -> tuple[Any, ...]:
    at: list[Any] = [0] * len(shape)
    if operand.split is not None:
      at[operand.split] = grid.block(core, part) // sharing
    if operand.chunked:
      at[0] = row
    return tuple(at)

  return pl.BlockSpec(tuple(shape), index)


def _kernel(
  cell: StepCell, split: int | None, grid: StepGrid, *refs: Ref
) -> None:
  """One step; the steps of a core are counted through all rows and parts.

  Step i has the buffer i % 3. The states of step i + 1 are on their way to
  another one, from which those of step i - 2 have left before.

  Args:
    cell: What a token does.
    split: Axis of the pool that the blocks share out.
    grid: How rows and blocks are cut.
    *refs: Slots that are read and written; inputs; the pool as an input, which
      is not used; outputs; the pool; the buffers; a semaphore for each buffer
      and direction.
  """
  slots = refs[:2]
  *xs, _, y, pool, states, semaphores = refs[2:]
  core, row, part = (pl.program_id(axis) for axis in range(3))
  step, steps = row * grid.parts + part, grid.rows * grid.parts

  def copies(of: Array, which: int, act: str) -> None:
    """Starts or awaits the copies of a step, in (0) or out (1)."""
    first, block = of // grid.parts * grid.together, of % grid.parts
    for index in range(grid.together):
      slot = slots[which][first + index]
      here = states.at[of % _BUFFERS, pl.ds(index, 1)]
      # A sentinel reaches no index, whatever guards the use of it.
      where: list[Any] = [pl.ds(jnp.maximum(slot, 0), 1)]
      where += [slice(None)] * (len(states.shape) - 2)
      if split is not None:
        width = states.shape[1 + split]
        start = grid.block(core, block) * width
        where[split] = pl.ds(pl.multiple_of(start, width), width)
      there = pool.at[tuple(where)]
      ends = (there, here) if which == 0 else (here, there)
      done = semaphores.at[which, of % _BUFFERS]

      @pl.when(slot >= 0)
      def _(ends: Any = ends, done: Ref = done) -> None:
        getattr(pltpu.make_async_copy(ends[0], ends[1], done), act)()

      if which == 0 and act == "wait":

        @pl.when(slot < 0)
        def _(here: Ref = here) -> None:
          here[...] = jnp.zeros_like(here)

  @pl.when(step == 0)
  def _() -> None:
    copies(step, 0, "start")

  @pl.when(step >= 2)
  def _() -> None:
    copies(step - 2, 1, "wait")

  @pl.when(step + 1 < steps)
  def _() -> None:
    copies(step + 1, 0, "start")

  copies(step, 0, "wait")
  cell(states.at[step % _BUFFERS], xs, y)
  copies(step, 1, "start")

  @pl.when(step == steps - 1)
  def _() -> None:
    if steps > 1:
      copies(step - 1, 1, "wait")
    copies(step, 1, "wait")
