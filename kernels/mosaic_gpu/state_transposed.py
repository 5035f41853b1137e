"""The scan of the matrix-valued recurrences with S^T in registers.

See `state.py` for what it computes. Its transpose is

    U^T  = X_v^T - S^T X_k^T               [v c]
    O^T  = e_o * (S^T Q^T) + U^T P^T       [v c]
    S'^T = e_s * S^T + (e_u * U)^T K       [v k]

with columns scaled. So S^T and U^T are left operands of products, which a
warpgroup takes from registers, as the products before left them there: nothing
between two products goes through shared memory, nor waits for other threads.
The right operands lie in shared memory the way that they come.

Of the tensor cores' time little passes without a product: S^T is split into
parts while the first of X_k is under way, U^T while Q^T is, and what becomes of
Q^T while K is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.mosaic_gpu.devices import Gpu
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_columns,
  choose,
  split,
  tile,
)
from sparse_prefix_jax.kernels.mosaic_gpu.left_registers import (
  Sum,
  begun_with,
  finished,
  load_transposed,
  multiply,
  with_sums,
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
from sparse_prefix_jax.kernels.mosaic_gpu.transposed import store_transposed

_COLUMNS = 64
"""Value columns of a program: the rows of a warpgroup's product."""
_MOST_KEYS = 128
"""Keys of a head for which S^T has registers."""

_BLOCK = 64
"""Keys of a block of S^T: the most that a tile of a right operand has."""


class _Buffers(NamedTuple):
  """The buffers of a program in shared memory.

  Attributes:
    chunk: The factors of the chunks under way. [stage ...]
    moved: What goes between registers and global memory: a part of a slot, or
      the output of a chunk in the first rows. [k v]
    arrived: One barrier per stage.
    restoring: The barrier of `moved`.
  """

  chunk: Ref
  moved: Ref
  arrived: Ref
  restoring: Ref


def takes(gpu: Gpu, width: int, columns: int) -> bool:
  """Whether programs of these sizes keep S^T in registers.

  Args:
    gpu: What the program is made for.
    width: Keys of a head.
    columns: Value columns of a program.
  """
  return gpu.warpgroup_products and width <= _MOST_KEYS and columns == _COLUMNS


def transposed_buffers(factors: Factors, config: MosaicGpuConfig) -> _Buffers:
  """The shared memory to ask for."""
  stages = config.stages
  return _Buffers(
    chunk=staged(factors, _COLUMNS, stages, width=CHUNK),
    moved=tile(factors.q.shape[3], _COLUMNS, dtype=jnp.float32),
    arrived=plgpu.Barrier(num_arrivals=loads(factors), num_barriers=stages),
    restoring=plgpu.Barrier(),
  )


class TransposedState(NamedTuple):
  """One head, 64 value columns, and some segments.

  No thread waits for others but where it says so: before `moved` is written,
  and before the loads of a chunk overwrite a stage.

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
      emit=self._emit,
    )
    plgpu.wait_smem_to_gmem(0)

  @property
  def _columns(self) -> Any:
    # Copies of tiles must be told that they begin at a tile.
    start = lax.axis_index("tile") * _COLUMNS
    return pl.ds(pl.multiple_of(start, _COLUMNS), _COLUMNS)

  @property
  def _output(self) -> Ref:
    """Where the output of a chunk lies on its way. [c v]"""
    return self.buffers.moved.at[pl.ds(0, CHUNK)]

  def _restore(self, slot: Array) -> Float32[Array, "v k"]:
    """The transpose of this program's part of a slot, or zeros at ZERO.

    By way of shared memory: a sentinel reaches no index, and what the buffer
    holds at ZERO is selected away.
    """
    buffer, barrier = self.buffers.moved, self.buffers.restoring
    # What the segment before left there is on its way to global memory.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    @pl.when(slot >= 0)
    def _() -> None:
      source = self.pool.at[slot, lax.axis_index("head"), :, self._columns]
      plgpu.copy_gmem_to_smem(source, buffer, barrier)
      plgpu.barrier_wait(barrier)

    stored = load_transposed(buffer, self.config)
    return choose(slot >= 0, stored, jnp.zeros_like(stored))

  def _load(self, chunk: Array, stage: Array | int) -> None:
    """Starts the copies of one chunk's factors to a stage's buffers."""
    barrier = self.buffers.arrived.at[stage]
    buffers = at_stage(self.buffers.chunk, stage)
    load_factors(self.factors, chunk, self._columns, buffers, barrier)

  def _step(
    self, chunk: Array, stage: Array, state: Float32[Array, "v k"]
  ) -> Float32[Array, "v k"]:
    """Takes one chunk, and leaves its output in shared memory.

    An inactive chunk has factors that nobody wrote, and keeps the state.

    Args:
      chunk: The number of the chunk.
      stage: The stage of the buffers that holds its factors.
      state: S^T.

    Returns:
      The transpose of S'.
    """
    real = self.plan[LENGTH, chunk]
    return lax.cond(
      real > 0,
      lambda: self._advance(stage, real, state),
      lambda: self._pass(state),
    )

  def _pass(self, state: Float32[Array, "v k"]) -> Float32[Array, "v k"]:
    """Takes an inactive chunk, whose output is zeros."""
    self._leave(jnp.zeros((_COLUMNS, CHUNK), jnp.float32))
    return state

  def _advance(
    self, stage: Array, real: Array, state: Float32[Array, "v k"]
  ) -> Float32[Array, "v k"]:
    """Takes an active chunk; the arguments are those of `_step`."""
    of = at_stage(self.buffers.chunk, stage)

    def products(
      corrected: Sum, asked: Sum, output: Sum, advanced: Sum
    ) -> Array:
      blocks, update = self._correct(of, state, corrected)
      queries, early = _stacked(of.q, CHUNK), update is None
      # Where nothing has been awaited yet, arithmetic on the state would wait
      # for the product that begins now.
      decayed = self._decayed(of, state) if early else None
      for keys, parts in blocks:
        multiply(asked, _pairs(parts, queries, keys))
      values = load_transposed(of.values, self.config).astype(jnp.float32)
      update = _until(real, values if update is None else values - update)
      weight = along_columns(of.scales[pl.ds(CHUNK, CHUNK)], _COLUMNS)
      parts = split(update * weight, PARTS)
      decayed = self._decayed(of, state) if decayed is None else decayed
      advanced = begun_with(advanced, decayed)
      stacked = _stacked(of.keys, state.shape[1])
      later = multiply(advanced, _pairs(parts, stacked))
      across = finished(asked, later)
      # Loads before that wait would take registers that are not there.
      start = along_columns(of.scales[pl.ds(0, CHUNK)], _COLUMNS)
      output = begun_with(output, across * start)
      parts = split(update, PARTS)
      multiply(output, _pairs(parts, _stacked(of.attention, CHUNK)))
      self._leave(_until(real, finished(output)))
      return finished(advanced)

    shapes = [(_COLUMNS, CHUNK)] * 3 + [(_COLUMNS, state.shape[1])]
    return with_sums(products, shapes, self.config)

  def _decayed(
    self, of: Ref, state: Float32[Array, "v k"]
  ) -> Float32[Array, "v k"]:
    """What a chunk leaves of the state: e_s * S^T."""
    return state * along_columns(of.decay[...], _COLUMNS)

  def _correct(
    self, of: Ref, state: Float32[Array, "v k"], corrected: Sum
  ) -> tuple[list[tuple[Any, list[Array]]], Float32[Array, "v c"] | None]:
    """Splits the state, and computes S^T X_k^T if there is an X_k.

    The state is split into parts block by block: the next one while the product
    with the one before already runs.

    Args:
      of: The factors of the chunk, in shared memory.
      state: S^T.
      corrected: For S^T X_k^T.

    Returns:
      The parts of each block, after its keys; and the product.
    """
    blocks = []
    for start in range(0, state.shape[1], _BLOCK):
      keys = pl.ds(start, _BLOCK)
      parts = split(state[:, start : start + _BLOCK], PARTS)
      blocks.append((keys, parts))
      if of.corrections is not None:
        multiply(corrected, _pairs(parts, [of.corrections], keys))
    found = None if of.corrections is None else finished(corrected)
    return blocks, found

  def _leave(self, output: Float32[Array, "v c"]) -> None:
    """Leaves an output in shared memory, for `_emit`."""
    # The last copy has been read: everybody may write there.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    store_transposed(self._output, output, self.config)

  def _emit(self, chunk: Array, state: Float32[Array, "v k"]) -> None:
    """Starts the copy of a chunk's output, and captures where it is asked for.

    Args:
      chunk: The number of the chunk.
      state: S^T behind it.
    """
    head = lax.axis_index("head")
    target = self.out.at[chunk, :, head, self._columns]
    plgpu.copy_smem_to_gmem(self._output, target)
    slot = self.plan[WRITE, chunk]

    @pl.when(slot >= 0)
    def _() -> None:
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      store_transposed(self.buffers.moved, state, self.config)
      plgpu.commit_smem()
      target = self.pool.at[slot, head, :, self._columns]
      plgpu.copy_smem_to_gmem(self.buffers.moved, target)

  def _clear(self, chunk: Array) -> None:
    """Writes the outputs of an inactive chunk, which are zeros."""
    zeros = jnp.zeros((CHUNK, _COLUMNS), jnp.float32)
    self.out[chunk, :, lax.axis_index("head"), self._columns] = zeros


def _stacked(buffer: Ref, rows: int) -> list[Ref]:
  """The parts of an operand, one below the other."""
  starts = range(0, buffer.shape[0], rows)
  return [buffer.at[pl.ds(start, rows)] for start in starts]


def _pairs(
  left: Sequence[Array], right: Sequence[Ref], keys: Any = slice(None)
) -> list[tuple[Array, Ref]]:
  """The products of operands in parts, but for the smallest term."""
  pairs = [(left[0], x.at[:, keys]) for x in right]
  return [*pairs, (left[1], right[0].at[:, keys])]


def _until(real: Array, x: Float32[Array, "v c"]) -> Float32[Array, "v c"]:
  """The columns of real tokens, and zeros behind them."""
  token = lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(token < real, x, jnp.zeros_like(x))
