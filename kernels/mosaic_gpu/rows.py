"""Scans whose channels do not mix, on GPU: token by token, channels apart.

The carry of such a scan is a vector over channels, the state of a diagonal
recurrence. A program owns some channels of one segment, keeps its carry in
registers from the first chunk to the last, restored from a slot and captured to
slots on the way, and walks through the tokens: a row of shared memory in, a row
of global memory out. The next chunk is on its way to shared memory while one is
walked through.

Tokens past a chunk's length are not visited, so the carry stays as it was; and
no arithmetic depends on where a token stands, so bits do not either.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  SHARED_BYTES,
  refused_sizes,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig,
  Ref,
  choose,
  launch,
  new,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import (
  LENGTH,
  WRITE,
  plan,
  programs,
  scan_segments,
)

Cell: TypeAlias = Callable[..., tuple[Array, Array]]
"""`(carry, one vector per array) -> (carry, y)`, y in float32; the carry is a
vector over the channels of a program, in the dtype of the pool."""

_LANES = 128  # threads of a warpgroup: what a vector is a multiple of
_TOGETHER = 8  # tokens per turn of the loop, whose loads overlap
_LONGEST = 256  # rows of one bulk copy


def sizes(x: Array, number_bytes: int) -> MosaicGpuConfig:
  """A warpgroup of channels per program: many programs, little latency.

  A second stage, which hides the loads of a chunk, where there is room for it.

  Args:
    x: Inputs. [n c d]
    number_bytes: Bytes of all that is loaded per token and channel.
  """
  two_stages = shared_bytes(x, _LANES, 2, number_bytes) <= SHARED_BYTES
  return MosaicGpuConfig(columns=_LANES, stages=2 if two_stages else 1)


def shared_bytes(x: Array, columns: int, stages: int, number_bytes: int) -> int:
  """Counts the bytes of shared memory that a program takes.

  Args:
    x: Inputs. [n c d]
    columns: Channels of a program.
    stages: How many chunks are under way at a time.
    number_bytes: The bytes of all that is loaded per token and channel.
  """
  return stages * x.shape[1] * columns * number_bytes


def unfit(x: Array, config: MosaicGpuConfig, number_bytes: int) -> str | None:
  """Why these kernels do not take the inputs, or None.

  Args:
    x: Inputs. [n c d]
    config: `columns` channels per program: a multiple of the threads of a
      warpgroup, which divides d.
    number_bytes: The bytes of all that is loaded per token and channel.
  """
  columns, stages = config.columns, config.stages
  if columns < 1 or columns % _LANES or x.shape[2] % columns:
    return (
      f"cannot cut {x.shape[2]} channels into {columns}; it takes a multiple "
      f"of {_LANES} that divides them"
    )
  taken = shared_bytes(x, columns, stages, number_bytes)
  return unfit_inputs(x) or refused_sizes(stages, taken)


def unfit_inputs(x: Array) -> str | None:
  """Why these kernels do not take the inputs, however they are cut, or None.

  Args:
    x: Inputs. [n c d]
  """
  if x.dtype not in (jnp.bfloat16, jnp.float32):
    return f"takes bfloat16 and float32, and these are {x.dtype}"
  if x.shape[1] > _LONGEST:
    return f"takes chunks of {_LONGEST} tokens at most, not {x.shape[1]}"
  return None


def scan(
  cell: Cell,
  arrays: Sequence[Float[Array, "n c d"]],
  pool: Float[Array, "s d"],
  chunks: Chunks,
  config: MosaicGpuConfig,
  name: str,
) -> tuple[Float32[Array, "n c d"], Float[Array, "s d"]]:
  """Restores, scans and captures in one launch, with the pool in place.

  Args:
    cell: One token of some channels.
    arrays: What a token reads; padding is never read.
    pool: Carries, donated.
    chunks: What each chunk reads, writes and holds.
    config: `columns` (channels) per program and `stages` of loads.
    name: What a profile calls the kernel.

  Returns:
    y, zero past a chunk's length, and the pool.
  """
  n, c, width = arrays[0].shape
  columns, stages = config.columns, config.stages
  loaded = [plgpu.SMEM((stages, c, columns), x.dtype) for x in arrays]
  arrived = plgpu.Barrier(num_arrivals=len(arrays), num_barriers=stages)

  def body(operands: Any, results: Any, buffers: Any) -> None:
    fields: Any = cell, *operands, *results, *buffers, config
    _Program(*fields).run()

  y, pool = launch(
    body,
    (plan(chunks), list(arrays)),
    [new(n, c, width, dtype=jnp.float32), pool],
    (loaded, arrived),
    grid={"segment": programs(n), "tile": width // columns},
    config=config,
    name=name,
  )
  return y, pool


class _Program(NamedTuple):
  """Some channels, and some segments.

  Attributes:
    cell: What one token does to the carry.
    plan: What each segment reads and writes, see `mosaic_gpu/segments.py`.
    arrays: What tokens read, in global memory. [n c d] each
    y: The outputs. [n c d]
    pool: The pool of carries. [s d]
    loaded: `arrays` of the chunks under way, in shared memory. [stage c d]
    arrived: One barrier per stage.
    config: The static sizes of the kernel.
  """

  cell: Cell
  plan: Ref
  arrays: list[Ref]
  y: Ref
  pool: Ref
  loaded: list[Ref]
  arrived: Ref
  config: MosaicGpuConfig

  def run(self) -> None:
    """Scans the segments of this program."""
    scan_segments(
      self.plan,
      self.arrived,
      self.config.stages,
      restore=self._restore,
      load=self._load,
      step=self._step,
      clear=lambda chunk: self._clear(chunk, 0, self.y.shape[1]),
    )

  @property
  def _columns(self) -> Any:
    width = self.config.columns
    return pl.ds(pl.multiple_of(lax.axis_index("tile") * width, width), width)

  def _restore(self, slot: Array) -> Array:
    """The carry that a slot holds, or zeros at ZERO: slot 0 is read then."""
    stored = self.pool[lax.max(slot, 0), self._columns]
    return choose(slot >= 0, stored, jnp.zeros_like(stored))

  def _load(self, chunk: Array, stage: Array | int) -> None:
    """Starts the copies of one chunk to a stage's buffers."""
    for source, buffer in zip(self.arrays, self.loaded, strict=True):
      plgpu.copy_gmem_to_smem(
        source.at[chunk, :, self._columns],
        buffer.at[stage],
        self.arrived.at[stage],
      )

  def _step(self, chunk: Array, stage: Array, carry: Array) -> Array:
    """Takes one chunk: its real tokens, zeros behind them, and the capture.

    Tokens go in groups, whose loads do not wait for one another; the last few
    go one by one. Either way it is the same arithmetic in the same order.

    Args:
      chunk: The number of the chunk.
      stage: The stage of the buffers that holds its inputs.
      carry: The carry before the chunk.

    Returns:
      The carry after its real tokens.
    """
    length = self.plan[LENGTH, chunk]

    def token(t: Array, carry: Array) -> Array:
      inputs = [buffer[stage, t] for buffer in self.loaded]
      carry, y = self.cell(carry, *inputs)
      self.y[chunk, t, self._columns] = y
      return carry

    def together(group: Array, carry: Array) -> Array:
      for offset in range(_TOGETHER):
        carry = token(group * _TOGETHER + offset, carry)
      return carry

    groups = lax.div(length, _TOGETHER)
    carry = lax.fori_loop(0, groups, together, carry)
    carry = lax.fori_loop(groups * _TOGETHER, length, token, carry)
    self._clear(chunk, length, self.y.shape[1])
    self._capture(self.plan[WRITE, chunk], carry)
    return carry

  def _clear(self, chunk: Array, start: Array | int, stop: Array | int) -> None:
    """Writes zeros for the outputs of padding.

    Args:
      chunk: The number of the chunk.
      start: First token.
      stop: Behind the last.
    """
    zeros = jnp.zeros((self.config.columns,), jnp.float32)

    def token(t: Array, _: None) -> None:
      self.y[chunk, t, self._columns] = zeros

    lax.fori_loop(start, stop, token, None)

  def _capture(self, slot: Array, carry: Array) -> None:
    """Writes the carry to its slot, if it has one."""

    @pl.when(slot >= 0)
    def _() -> None:
      self.pool[slot, self._columns] = carry
