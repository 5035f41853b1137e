"""diagonal_scan_step on GPU: one number of a state per channel, or e of them.

RG-LRU's form is the step of `mosaic_gpu/rows_step.py`. Mamba's has a tile of
[channels e] numbers per program: it arrives in shared memory by a bulk copy, as
the rates do, and leaves from registers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu import rows_step as rows
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  refused_device,
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
  load,
  new,
  vector,
)

_RESET = -1e36  # as -inf, but its product with a rate of zero is not NaN
_CHANNELS = (256, 128, 64)
"""Rows of a tile: what is tried; one bulk copy has as many at most."""
_NUMBERS = 64 * 64
"""Numbers of a tile, at most: 32 registers of each thread, and of the rates."""


def step(
  x: Float[Array, "b d"],
  log_decay: Float32[Array, "b d"],
  pool: Float32[Array, "s d *e"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  rate: Float32[Array, "d e"] | None,
  b: Float[Array, "b e"] | None,
  c: Float[Array, "b e"] | None,
  *,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "b d"], Float32[Array, "s d *e"]]:
  """Takes one token of b rows in one launch; as `diagonal_scan_step`."""
  slots = read, write
  if rate is not None:
    operands = _Operands(x, log_decay, rate, b, c, *slots)
    return _selective(operands, pool, config)
  one = pool[:, None]  # carries of one vector
  y, one = rows.step(
    _cell, [x, log_decay], None, one, slots, config, "diagonal_scan_step"
  )
  return y, one[:, 0]


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  x: Array,
  log_decay: Array,
  pool: Array,
  read: Array,
  write: Array,
  rate: Array | None,
  *_: Any,
) -> str | None:
  """Why the kernels do not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernel.
    x: Inputs. [b d]
    log_decay: Log decays. [b d]
    pool: States. [s d] or [s d e]
    read: Slots. [b]
    write: Slots. [b]
    rate: Factors of the log decay in Mamba's form, or None. [d e]
    *_: Further arguments, which do not matter here.
  """
  del pool, read, write
  refused = refused_device(device, config, products=False)
  if log_decay.dtype != jnp.float32:
    return f"takes decays of float32, and these are {log_decay.dtype}"
  if rate is None:
    return refused or rows.unfit(x, config)
  return refused or rows.unfit_tokens(x) or _unfit_tile(x, rate, config)


def _unfit_tile(x: Array, rate: Array, config: MosaicGpuConfig) -> str | None:
  """Why Mamba's form does not take these arguments, or None."""
  channels, states = config.columns, rate.shape[1]
  if channels not in _CHANNELS or x.shape[1] % channels:
    return f"cannot cut {x.shape[1]} channels into {channels}"
  if states % 8:
    return f"takes a multiple of 8 states per channel, not {states}"
  if channels * states > _NUMBERS:
    return f"holds {_NUMBERS} numbers in registers, not {channels} x {states}"
  return None


def heuristic(device: Device, x: Array, *rest: Any) -> MosaicGpuConfig:
  """Chooses the channels of a program: in Mamba's form what a tile holds."""
  del device
  rate = rest[4]
  if rate is None:
    return rows.sizes(x)
  fitting = (
    channels
    for channels in _CHANNELS
    if x.shape[1] % channels == 0 and channels * rate.shape[1] <= _NUMBERS
  )
  return MosaicGpuConfig(columns=next(fitting, _CHANNELS[-1]))


STEP = Implementation(
  config=MosaicGpuConfig,
  run=step,
  refusal=within_grid(refusal),
  heuristic=heuristic,
)


def _cell(
  state: rows.Vectors, inputs: rows.Vectors, _: rows.Vectors
) -> tuple[rows.Vectors, Float32[Array, "d"]]:
  """Takes one token: h = exp(a) h + x, and y = h.

  Args:
    state: The number h, in a tuple of its own.
    inputs: x and a.
  """
  x, log_decay = inputs
  decay = jnp.exp(log_decay)
  h = _decayed(decay, state[0]) + x.astype(jnp.float32)
  return (h,), h


def _decayed(decay: Array, state: Array) -> Array:
  """The state times its decay; zero where that is, whatever a state holds."""
  return jnp.where(decay == 0, jnp.zeros_like(state), decay * state)


class _Operands(NamedTuple):
  """What a program of Mamba's form reads, but for the states.

  Attributes:
    x: Inputs. [b d]
    log_decay: Log decays. [b d]
    rate: Factors of the log decay. [d e]
    b: What an input adds. [b e]
    c: How a state is read out. [b e]
    read: Slots, or ZERO. [b]
    write: Slots that no other row reads or writes, or NONE. [b]
  """

  x: Ref
  log_decay: Ref
  rate: Ref
  b: Ref
  c: Ref
  read: Ref
  write: Ref


class _Buffers(NamedTuple):
  """The buffers of a program in shared memory.

  Attributes:
    state: The state of its channels. [d e]
    rate: Their rates. [d e]
    x: Their inputs. [d]
    log_decay: Their log decays. [d]
    b: What an input adds. [e]
    c: How a state is read out. [e]
    arrived: Barrier of all of these but `state`.
    restored: Barrier of `state`.
  """

  state: Ref
  rate: Ref
  x: Ref
  log_decay: Ref
  b: Ref
  c: Ref
  arrived: Ref
  restored: Ref


def _selective(
  of: _Operands, pool: Float32[Array, "s d e"], config: MosaicGpuConfig
) -> tuple[Float32[Array, "b d"], Float32[Array, "s d e"]]:
  """Advances b rows of Mamba's form in one launch, with the pool in place."""
  (b, width), (channels, states) = (
    of.x.shape,
    (config.columns, of.rate.shape[1]),
  )
  square = vector(channels, states)
  buffers = _Buffers(
    state=square,
    rate=square,
    x=plgpu.SMEM((channels,), of.x.dtype),
    log_decay=vector(channels),
    b=plgpu.SMEM((states,), of.b.dtype),
    c=plgpu.SMEM((states,), of.c.dtype),
    arrived=plgpu.Barrier(num_arrivals=5),
    restored=plgpu.Barrier(),
  )

  def body(operands: Ref, results: Ref, buffers: Ref) -> None:
    fields: Any = operands, *results, buffers, config
    _Selective(*fields).run()

  y, pool = launch(
    body,
    of,
    [new(b, width, dtype=jnp.float32), pool],
    buffers,
    grid={"row": b, "tile": width // channels},
    config=config,
    name="selective_scan_step",
  )
  return y, pool


class _Selective(NamedTuple):
  """Some channels of one row, in Mamba's form.

  Attributes:
    of: Operands, in global memory.
    y: The outputs. [b d]
    pool: The pool of states. [s d e]
    buffers: Buffers, in shared memory.
    config: Sizes of the program.
  """

  of: _Operands
  y: Ref
  pool: Ref
  buffers: _Buffers
  config: MosaicGpuConfig

  def run(self) -> None:
    """Takes one token: h = exp(a rate) h + x b^T, and y = h c."""
    row = lax.axis_index("row")
    state = self._fetch(row)
    channels, states = state.shape
    x, log_decay, b, c = (
      buffer[...].astype(jnp.float32) for buffer in self.buffers[2:6]
    )
    rate = as_accumulator(self.buffers.rate[...], self.config)
    settled = jnp.where(log_decay == -jnp.inf, _RESET, log_decay)
    decay = jnp.exp(along_rows(settled, states) * rate)
    added = along_rows(x, states) * along_columns(b, channels)
    state = _decayed(decay, state) + added
    y = jnp.sum(along_columns(c, channels) * state, axis=1)
    self.y[row, self._columns] = y
    write = self.of.write[row]

    @pl.when(write >= 0)
    def _() -> None:
      self.pool[write, self._columns] = state

  @property
  def _columns(self) -> Any:
    width = self.config.columns
    return pl.ds(pl.multiple_of(lax.axis_index("tile") * width, width), width)

  def _fetch(self, row: Array) -> Float32[Array, "d e"]:
    """Loads all that the token brings; returns the state, zeros at ZERO."""
    of, buffers, columns = self.of, self.buffers, self._columns
    slot = of.read[row]

    @pl.when(slot >= 0)
    def _() -> None:
      source = self.pool.at[slot, columns]
      plgpu.copy_gmem_to_smem(source, buffers.state, buffers.restored)

    copies = (
      (of.rate.at[columns], buffers.rate),
      (of.x.at[row, columns], buffers.x),
      (of.log_decay.at[row, columns], buffers.log_decay),
      (of.b.at[row], buffers.b),
      (of.c.at[row], buffers.c),
    )
    load(copies, buffers.arrived)

    @pl.when(slot >= 0)
    def _() -> None:
      plgpu.barrier_wait(buffers.restored)

    stored = as_accumulator(buffers.state[...], self.config)
    return choose(slot >= 0, stored, jnp.zeros_like(stored))
