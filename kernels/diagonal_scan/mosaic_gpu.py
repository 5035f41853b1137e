"""diagonal_scan on GPU: token by token, channels apart.

RG-LRU's form has one number per channel, and is the scan of
`mosaic_gpu/rows.py`. Mamba's has e: a program holds a tile [64 e] of the state
in registers, and each token is a few operations on that tile, with vectors of
channels along its rows, and those of b and c along its columns.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu import rows as rows
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  SHARED_BYTES,
  refused_device,
  refused_sizes,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig,
  Ref,
  along_columns,
  along_rows,
  as_accumulator,
  choose,
  launch,
  new,
  vector,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import (
  LENGTH,
  WRITE,
  plan,
  programs,
  scan_segments,
)

_RESET = -1e36  # as -inf, but its product with a rate of zero is not NaN
_CHANNELS = 64  # rows of a tile


def packed(
  x: Float[Array, "n c d"],
  log_decay: Float32[Array, "n c d"],
  pool: Float32[Array, "s d *e"],
  chunks: Chunks,
  *,
  rate: Float32[Array, "d e"] | None,
  b: Float[Array, "n c e"] | None,
  c: Float[Array, "n c e"] | None,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "n c d"], Float32[Array, "s d *e"]]:
  """Runs the operation in one launch; takes the arguments of `diagonal_scan`.

  Returns:
    y, zero past a chunk's length, and the pool.
  """
  if rate is not None:
    arrays = x, log_decay, b, c
    return _selective(arrays, rate, pool, chunks, config)
  return rows.scan(_cell, [x, log_decay], pool, chunks, config, "diagonal_scan")


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  x: Array,
  *_: Any,
  rate: Array | None = None,
  **__: Any,
) -> str | None:
  """Why the kernels do not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernel.
    x: Inputs. [n c d]
    *_: Further arguments, which do not matter here.
    rate: Factors of the log decay in Mamba's form, or None. [d e]
    **__: Further options, which do not matter here.
  """
  refused = refused_device(device, config, products=False)
  if rate is None:
    return refused or rows.unfit(x, config, _number_bytes(x))
  if x.shape[2] % _CHANNELS:
    return f"takes a multiple of {_CHANNELS} channels, not {x.shape[2]}"
  if rate.shape[1] % 8 or rate.shape[1] > 64:
    return f"takes 8, 16, ... 64 states per channel, not {rate.shape[1]}"
  taken = _selective_bytes(x, rate, config.stages)
  reason = rows.unfit_inputs(x) or refused_sizes(config.stages, taken)
  return refused or reason


def heuristic(
  device: Device, x: Array, *_: Any, rate: Array | None = None, **__: Any
) -> MosaicGpuConfig:
  """Takes as few channels per program as can be: they are what is parallel.

  A warpgroup of them in RG-LRU's form, the rows of a tile in Mamba's.
  """
  if rate is None:
    return rows.sizes(x, _number_bytes(x))
  two_stages = _selective_bytes(x, rate, 2) <= SHARED_BYTES
  return MosaicGpuConfig(columns=_CHANNELS, stages=2 if two_stages else 1)


def _number_bytes(x: Array) -> int:
  """Bytes of an input and its log decay, per token and channel."""
  return x.dtype.itemsize + 4


def _selective_bytes(x: Array, rate: Array, stages: int) -> int:
  """Counts the bytes of shared memory that Mamba's form takes.

  Args:
    x: Inputs. [n c d]
    rate: The rate of each number of the state. [d e]
    stages: How many chunks are under way at a time.
  """
  states = rate.shape[1]
  token = _CHANNELS * _number_bytes(x) + 2 * states * x.dtype.itemsize
  return stages * x.shape[1] * token + 4 * _CHANNELS * states


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=packed,
  refusal=within_grid(refusal),
  heuristic=heuristic,
)


def _cell(
  state: Float32[Array, "d"], x: Float[Array, "d"], log_decay: Array
) -> tuple[Float32[Array, "d"], Float32[Array, "d"]]:
  """One token: h = exp(a) h + x, and y = h.

  Args:
    state: The number h of each channel.
    x: The input.
    log_decay: The log decay a.
  """
  h = _decay(log_decay) * state + x.astype(jnp.float32)
  return h, h


def _decay(log_decay: Array) -> Array:
  """Computes exp(log_decay), which is zero at -inf."""
  settled = jnp.where(log_decay == -jnp.inf, _RESET, log_decay)
  return jnp.exp(settled)


def _selective(
  arrays: Sequence[Any],
  rate: Float32[Array, "d e"],
  pool: Float32[Array, "s d e"],
  chunks: Chunks,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "n c d"], Float32[Array, "s d e"]]:
  """Runs Mamba's form in one launch.

  Args:
    arrays: x, log_decay [n c d], b and c [n c e].
    rate: A factor of the log decay per state.
    pool: The states, donated: the result takes their memory.
    chunks: What each chunk reads, writes and holds.
    config: `stages` of loads.

  Returns:
    y, zero past a chunk's length, and the pool.
  """
  n, tokens, width = arrays[0].shape
  loaded = [
    plgpu.SMEM((config.stages, tokens, min(_CHANNELS, x.shape[2])), x.dtype)
    for x in arrays
  ]
  square = vector(_CHANNELS, rate.shape[1])
  barriers = (
    plgpu.Barrier(num_arrivals=len(arrays), num_barriers=config.stages),
    plgpu.Barrier(),
  )

  def body(operands: Any, results: Any, buffers: Any) -> None:
    fields: Any = *operands, *results, *buffers, config
    _Selective(*fields).run()

  y, pool = launch(
    body,
    (plan(chunks), list(arrays), rate),
    [new(n, tokens, width, dtype=jnp.float32), pool],
    (loaded, square, *barriers),
    grid={"segment": programs(n), "tile": width // _CHANNELS},
    config=config,
    name="selective_scan",
  )
  return y, pool


class _Selective(NamedTuple):
  """64 channels of Mamba's form, and some segments.

  Attributes:
    plan: What each segment reads and writes, see `mosaic_gpu/segments.py`.
    arrays: x, log_decay, b and c in global memory.
    rate: The rate of each number of the state. [d e]
    y: The outputs. [n c d]
    pool: The pool of states. [s d e]
    loaded: `arrays` of the chunks under way, in shared memory. [stage c ...]
    square: A tile on its way to registers. [64 e]
    arrived: One barrier per stage.
    restoring: Barrier of `square`.
    config: The static sizes of the kernel.
  """

  plan: Ref
  arrays: list[Ref]
  rate: Ref
  y: Ref
  pool: Ref
  loaded: list[Ref]
  square: Ref
  arrived: Ref
  restoring: Ref
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
      clear=lambda chunk: self._clear(chunk, 0),
    )

  @property
  def _columns(self) -> Any:
    start = lax.axis_index("tile") * _CHANNELS
    return pl.ds(pl.multiple_of(start, _CHANNELS), _CHANNELS)

  def _tile(self, source: Ref) -> Float32[Array, "d e"]:
    """Loads a tile [64 e] of global memory, by way of shared memory."""
    plgpu.copy_gmem_to_smem(source, self.square, self.restoring)
    plgpu.barrier_wait(self.restoring)
    value = as_accumulator(self.square[...], self.config)
    plgpu.commit_smem()  # all have read, before the next copy overwrites
    return value

  def _restore(self, slot: Array) -> tuple[Array, Array]:
    """Loads the rates and the state of a slot; slot 0 is read at ZERO."""
    rate = self._tile(self.rate.at[self._columns])
    state = self._tile(self.pool.at[lax.max(slot, 0), self._columns])
    return rate, choose(slot >= 0, state, jnp.zeros_like(state))

  def _load(self, chunk: Array, stage: Array | int) -> None:
    """Starts the copies of one chunk to a stage's buffers."""
    for index, (source, buffer) in enumerate(zip(self.arrays, self.loaded)):
      whole = source.at[chunk]
      plgpu.copy_gmem_to_smem(
        whole.at[:, self._columns] if index < 2 else whole,
        buffer.at[stage],
        self.arrived.at[stage],
      )

  def _step(
    self, chunk: Array, stage: Array, carry: tuple[Array, Array]
  ) -> tuple[Array, Array]:
    """Takes one chunk: its real tokens, zeros behind them, and the capture.

    h_t = exp(a_t rate) h + x_t b_t^T and y_t = h_t c_t, on a tile.

    Args:
      chunk: The number of the chunk.
      stage: The stage of the buffers that holds its inputs.
      carry: Rates and state.

    Returns:
      Rates, and the state after the real tokens.
    """
    rate, state = carry
    states = state.shape[1]

    def token(t: Array, state: Array) -> Array:
      x, log_decay, b, c = (
        buffer[stage, t].astype(jnp.float32) for buffer in self.loaded
      )
      settled = jnp.where(log_decay == -jnp.inf, _RESET, log_decay)
      decay = jnp.exp(along_rows(settled, states) * rate)
      added = along_rows(x, states) * along_columns(b, _CHANNELS)
      state = decay * state + added
      y = jnp.sum(along_columns(c, _CHANNELS) * state, axis=1)
      self.y[chunk, t, self._columns] = y
      return state

    length = self.plan[LENGTH, chunk]
    state = lax.fori_loop(0, length, token, state)
    self._clear(chunk, length)
    slot = self.plan[WRITE, chunk]

    @pl.when(slot >= 0)
    def _() -> None:
      self.pool[slot, self._columns] = state

    return rate, state

  def _clear(self, chunk: Array, start: Array | int) -> None:
    """Zeros for the outputs from token `start` on.

    A sum over columns of zeros lies in registers as the outputs do.
    """
    zeros = jnp.zeros((_CHANNELS, 8), jnp.float32)

    def token(t: Array, _: None) -> None:
      none = as_accumulator(zeros, self.config)
      self.y[chunk, t, self._columns] = jnp.sum(none, axis=1)

    lax.fori_loop(start, self.y.shape[1], token, None)
