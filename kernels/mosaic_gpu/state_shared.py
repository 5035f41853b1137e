"""The scan of the matrix-valued recurrences with the state in shared memory.

See `state.py` for what it computes. Products take S as their right operand, and
that lies in shared memory: for any number of columns, and for devices without
products of a warpgroup. The state itself stays in registers, block by block.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_rows,
  choose,
  dot,
  dot_parts,
  parts,
  split,
  stacked,
  tile,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import (
  LENGTH,
  WRITE,
  scan_segments,
)
from sparse_prefix_jax.kernels.mosaic_gpu.state_factors import (
  PARTS,
  Factors,
  at_stage,
  load_factors,
  loads,
  staged,
)

BLOCK = 64
"""Rows of the state per product."""


class _Buffers(NamedTuple):
  """The buffers of a program in shared memory.

  Attributes:
    chunk: The factors of the chunks under way. [stage ...]
    state: Parts of S. [part k v]
    updates: Parts of U, then of e_u * U. [2*part c v]
    restored: A block of S on its way to registers. [64 v]
    arrived: One barrier per stage.
    restoring: The barrier of `restored`.
  """

  chunk: Ref
  state: Ref
  updates: Ref
  restored: Ref
  arrived: Ref
  restoring: Ref


def shared_buffers(factors: Factors, config: MosaicGpuConfig) -> _Buffers:
  """The shared memory to ask for."""
  width, columns, stages = factors.q.shape[3], config.columns, config.stages
  operand = functools.partial(tile, width=columns)
  return _Buffers(
    chunk=staged(factors, columns, stages, width=columns),
    state=operand(PARTS, width, columns),
    updates=operand(2 * PARTS, CHUNK, columns),
    restored=tile(BLOCK, columns, dtype=jnp.float32),
    arrived=plgpu.Barrier(num_arrivals=loads(factors), num_barriers=stages),
    restoring=plgpu.Barrier(),
  )


class SharedState(NamedTuple):
  """One head, some value columns, and some segments.

  Attributes:
    plan: What each segment reads and writes, see `mosaic_gpu/segments.py`.
    factors: Factors of all chunks and heads, in global memory.
    out: The outputs. [n c hv v]
    pool: The pool of states. [s hv k v]
    buffers: Buffers, in shared memory.
    config: Sizes of the program.
  """

  plan: Ref
  factors: Ref
  out: Ref
  pool: Ref
  buffers: _Buffers
  config: MosaicGpuConfig

  def run(self) -> None:
    """Scans the segments of this program."""
    scan_segments(
      self.plan,
      self.buffers.arrived,
      self.config.stages,
      restore=self._restore,
      load=self._load,
      step=self._step,
      clear=self._clear,
    )

  @property
  def _columns(self) -> Any:
    width = self.config.columns
    # Copies of tiles must be told that they begin at a tile.
    return pl.ds(pl.multiple_of(lax.axis_index("tile") * width, width), width)

  @property
  def _rows(self) -> list[Any]:
    """The state in blocks of rows: what one product of a warpgroup makes."""
    width = self.factors.q.shape[3]
    return [pl.ds(start, BLOCK) for start in range(0, width, BLOCK)]

  def _restore(self, slot: Array) -> tuple[Array, ...]:
    """The blocks of this program's part of a slot, or zeros at ZERO.

    By way of shared memory, a block at a time: a sentinel reaches no index, and
    what the buffer holds at ZERO is selected away.
    """
    buffer, barrier = self.buffers.restored, self.buffers.restoring
    blocks = []
    for rows in self._rows:

      @pl.when(slot >= 0)
      def _(rows: Any = rows) -> None:
        source = self.pool.at[slot, lax.axis_index("head"), rows, self._columns]
        plgpu.copy_gmem_to_smem(source, buffer, barrier)
        plgpu.barrier_wait(barrier)

      stored = buffer[...]
      blocks.append(choose(slot >= 0, stored, jnp.zeros_like(stored)))
      plgpu.commit_smem()  # all have read, before the next copy overwrites
    return tuple(blocks)

  def _load(self, chunk: Array, stage: Array | int) -> None:
    """Starts the copies of one chunk's factors to a stage's buffers."""
    barrier = self.buffers.arrived.at[stage]
    load_factors(self.factors, chunk, self._columns, self._at(stage), barrier)

  def _at(self, stage: Array | int) -> Ref:
    """The buffers of a stage, as `Factors`."""
    return at_stage(self.buffers.chunk, stage)

  def _step(
    self, chunk: Array, stage: Array, state: tuple[Array, ...]
  ) -> tuple[Array, ...]:
    """Takes one chunk: the equations of this module, output and capture.

    An inactive chunk has factors that nobody wrote; what they make of the state
    is selected away.

    Args:
      chunk: The number of the chunk.
      stage: The stage of the buffers that holds its factors.
      state: Blocks [64 v] of S.

    Returns:
      The blocks of S'.
    """
    buffers, columns = self.buffers, self.config.columns
    for rows, block in zip(self._rows, state, strict=True):
      for part, value in enumerate(split(block, PARTS)):
        buffers.state[part, rows, :] = value
    plgpu.commit_smem()
    of = self._at(stage)
    real = self.plan[LENGTH, chunk]
    output = self._update(of, real)
    plgpu.commit_smem()
    output = output + dot_parts(
      stacked(of.attention), parts(buffers.updates), columns
    )
    advanced = []
    for rows, block in zip(self._rows, state, strict=True):
      decay = along_rows(of.decay[rows], columns)
      added = self._added(of, rows)
      advanced.append(decay * block + added)
    self._emit(chunk, real, output)
    state = tuple(
      choose(real > 0, new, old)
      for new, old in zip(advanced, state, strict=True)
    )
    self._capture(self.plan[WRITE, chunk], state)
    return state

  def _update(self, of: Ref, real: Array) -> Float32[Array, "c v"]:
    """Stores the parts of U and e_u * U; returns e_o * (Q S).

    Args:
      of: The factors of the chunk, in shared memory.
      real: Tokens of it. U is zero behind them, whatever X_v holds there.
    """
    columns, buffers = self.config.columns, self.buffers
    shape = (CHUNK, columns)
    state = parts(buffers.state)
    update = of.values[...].astype(jnp.float32)
    if of.corrections is not None:
      update = update - dot([(of.corrections, x) for x in state], shape)
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    update = jnp.where(row < real, update, jnp.zeros_like(update))
    if of.q.shape[0] == CHUNK:
      from_state = dot([(of.q, x) for x in state], shape)
    else:
      from_state = dot_parts(stacked(of.q), state, columns)
    scaled = update * along_rows(of.scales[pl.ds(CHUNK, CHUNK)], columns)
    for part, value in enumerate(
      [*split(update, PARTS), *split(scaled, PARTS)]
    ):
      buffers.updates[part] = value
    return from_state * along_rows(of.scales[pl.ds(0, CHUNK)], columns)

  def _added(self, of: Ref, rows: Any) -> Float32[Array, "r v"]:
    """Computes K^T (e_u * U) for some rows of the state.

    Args:
      of: The factors of the chunk, in shared memory.
      rows: Which rows of the state.
    """
    columns, width = self.config.columns, self.factors.q.shape[3]
    updates = [self.buffers.updates.at[PARTS + part] for part in range(PARTS)]
    if of.keys.shape[0] == width:
      return dot([(of.keys.at[rows], x) for x in updates], (BLOCK, columns))
    second = of.keys.at[pl.ds(width + rows.start, BLOCK)]
    return dot_parts([of.keys.at[rows], second], updates, columns)

  def _emit(self, chunk: Array, real: Array, output: Array) -> None:
    """Writes outputs, and zeros at padding, where factors may be anything."""
    row = lax.broadcasted_iota(jnp.int32, output.shape, 0)
    output = jnp.where(row < real, output, jnp.zeros_like(output))
    self.out[chunk, :, lax.axis_index("head"), self._columns] = output

  def _clear(self, chunk: Array) -> None:
    """Writes the outputs of an inactive chunk, which are zeros."""
    zeros = jnp.zeros((CHUNK, self.config.columns), jnp.float32)
    self.out[chunk, :, lax.axis_index("head"), self._columns] = zeros

  def _capture(self, slot: Array, state: tuple[Array, ...]) -> None:
    """Writes the state to its slot, if it has one."""

    @pl.when(slot >= 0)
    def _() -> None:
      for rows, block in zip(self._rows, state, strict=True):
        self.pool[slot, lax.axis_index("head"), rows, self._columns] = block
