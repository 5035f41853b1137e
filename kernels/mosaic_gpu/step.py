"""One token of matrix states, on GPU: a state is read, advanced and written.

gated_delta_rule, kimi_delta_attention and linear_attention in decoding:

    S' = exp(a) S                 a per head, or per key channel
    u  = beta (v - S'^T k)        a delta rule; v itself without one
    S  = S' + k u^T
    o  = S^T q

A step is bound by memory: a state comes and goes, for a few operations on each
of its numbers. So it is one kernel and two passes. A program takes some value
columns of one head of one row: its tile of the slot arrives in shared memory by
a bulk copy, is advanced in registers, and leaves the way it came. Several
programs share a multiprocessor, and their copies overlap.

There are no products of tensor cores, everything is float32, and inputs may be.
Sums over keys are those of one tile, in an order that depends on k alone: a
row's bits depend on its token and its state, not on other rows.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.implementations import Device, Implementation
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
  tile,
  vector,
)

_ROWS = 64
"""Rows of a warpgroup's tile, of which the keys of a head are a multiple."""
_MOST_ROWS = 256
"""Rows of one bulk copy."""
_COLUMNS = (64, 32, 16)
"""Columns of a tile: what is tried, and the fewest."""
_NUMBERS = 64 * 128
"""Numbers of a tile that fill 64 registers of each thread."""


def step_implementation(name: str) -> Implementation:
  """The step of an operation on states [s hv k v].

  It is called with q, k, v, log_decay, beta if it is a delta rule, pool, read
  and write.

  Args:
    name: What a profile calls the kernel.
  """

  def run(
    q: Array, k: Array, v: Array, *rest: Array, config: MosaicGpuConfig
  ) -> tuple[Array, Array]:
    log_decay, *beta, pool, read, write = rest
    strength = beta[0] if beta else None
    operands = _Operands(q, k, v, log_decay, strength, read, write)
    return _step(operands, pool, config, name)

  return Implementation(MosaicGpuConfig, run, within_grid(_refusal), _heuristic)


def _refusal(
  device: Device,
  config: MosaicGpuConfig,
  q: Array,
  k: Array,
  v: Array,
  *rest: Array,
) -> str | None:
  """Why the kernel does not take these arguments, or None."""
  refused = refused_device(device, config, products=False)
  return refused or _unfit(q, k, v, rest[0]) or _unfit_tile(q, v, config)


def _unfit(q: Array, k: Array, v: Array, log_decay: Array) -> str | None:
  """Why the kernel does not take these arrays, or None."""
  dtypes = {x.dtype for x in (q, k, v)}
  if not dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}:
    told = ", ".join(sorted(str(dtype) for dtype in dtypes))
    return f"takes bfloat16 and float32, and these are {told}"
  if log_decay.dtype != jnp.float32:
    return f"takes decays of float32, and these are {log_decay.dtype}"
  width = q.shape[2]
  if width % _ROWS or width > _MOST_ROWS:
    return f"takes 64, 128, 192 or 256 keys of a head, not {width}"
  return None


def _unfit_tile(q: Array, v: Array, config: MosaicGpuConfig) -> str | None:
  """Why a tile of these columns cannot be, or None."""
  columns, fewest = config.columns, _COLUMNS[-1]
  if columns % fewest or columns < fewest or v.shape[2] % columns:
    return (
      f"cannot cut {v.shape[2]} value columns into {columns}; it takes a "
      f"multiple of {fewest} that divides them"
    )
  numbers, most = q.shape[2] * columns, 2 * _NUMBERS
  if numbers > most:
    return f"holds {most} numbers of a state in registers, not {numbers}"
  return None


def _heuristic(
  device: Device, q: Array, k: Array, v: Array, *_: Array
) -> MosaicGpuConfig:
  """Chooses the columns: as many as leave room for several programs.

  How many rows there are must not be asked: their number would change bits.
  """
  del device, k
  fitting = (
    columns
    for columns in _COLUMNS
    if v.shape[2] % columns == 0 and q.shape[2] * columns <= _NUMBERS
  )
  return MosaicGpuConfig(columns=next(fitting, _COLUMNS[-1]))


class _Operands(NamedTuple):
  """What a program reads, but for the states.

  Attributes:
    q: The queries. [b h k]
    k: The keys. [b h k]
    v: The values. [b hv v]
    log_decay: a, per head or per key channel. [b hv] or [b hv k]
    beta: Strengths of a delta rule, or None. [b hv]
    read: Slots, or ZERO. [b]
    write: Slots that no other row reads or writes, or NONE. [b]
  """

  q: Ref
  k: Ref
  v: Ref
  log_decay: Ref
  beta: Ref
  read: Ref
  write: Ref


def _step(
  of: _Operands,
  pool: Float32[Array, "s hv k v"],
  config: MosaicGpuConfig,
  name: str,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """Advances b rows by one token in one launch, with the pool in place.

  Args:
    of: The arrays that it reads.
    pool: States, donated.
    config: `columns` of a program.
    name: What a profile calls the kernel.

  Returns:
    The outputs and the pool.
  """
  b, heads, value_width = of.v.shape
  width, columns = of.q.shape[2], config.columns
  channels = of.log_decay.ndim == 3
  buffers = _Buffers(
    state=tile(width, columns, dtype=jnp.float32),
    q=plgpu.SMEM((width,), of.q.dtype),
    k=plgpu.SMEM((width,), of.k.dtype),
    v=plgpu.SMEM((columns,), of.v.dtype),
    log_decay=vector(width) if channels else None,
    arrived=plgpu.Barrier(num_arrivals=4 if channels else 3),
    restored=plgpu.Barrier(),
  )

  def body(operands: Ref, results: Ref, buffers: Ref) -> None:
    fields: Any = operands, *results, buffers, config
    _Program(*fields).run()

  out, pool = launch(
    body,
    of,
    [new(b, heads, value_width, dtype=jnp.float32), pool],
    buffers,
    grid={"row": b, "head": heads, "tile": value_width // columns},
    config=config,
    name=name,
  )
  return out, pool


class _Buffers(NamedTuple):
  """The buffers of a program in shared memory.

  Attributes:
    state: Its part of S. [k v]
    q: The query. [k]
    k: The key. [k]
    v: Its values. [v]
    log_decay: a per key channel, or None. [k]
    arrived: Barrier of all of these but `state`.
    restored: Barrier of `state`.
  """

  state: Ref
  q: Ref
  k: Ref
  v: Ref
  log_decay: Ref
  arrived: Ref
  restored: Ref


class _Program(NamedTuple):
  """Some value columns of one head of one row.

  Attributes:
    of: Operands, in global memory.
    out: The outputs. [b hv v]
    pool: The pool of states. [s hv k v]
    buffers: Buffers, in shared memory.
    config: Sizes of the program.
  """

  of: _Operands
  out: Ref
  pool: Ref
  buffers: _Buffers
  config: MosaicGpuConfig

  def run(self) -> None:
    """Reads a state, advances it by one token and writes it."""
    row, head = lax.axis_index("row"), lax.axis_index("head")
    width, columns = self.buffers.state.shape
    self._fetch(row, head)
    query, key, update = (
      x[...].astype(jnp.float32)
      for x in (self.buffers.q, self.buffers.k, self.buffers.v)
    )
    query, key = (along_rows(x, columns) for x in (query, key))
    state = self._decayed(self.of.read[row])
    if self.of.beta is not None:
      predicted = jnp.sum(state * key, axis=0)
      update = self.of.beta[row, head] * (update - predicted)
    state = state + key * along_columns(update, width)
    self.out[row, head, self._columns] = jnp.sum(state * query, axis=0)
    self._capture(self.of.write[row], state)

  @property
  def _columns(self) -> Any:
    width = self.config.columns
    # Copies of tiles must be told that they begin at a tile.
    return pl.ds(pl.multiple_of(lax.axis_index("tile") * width, width), width)

  def _slot(self, slot: Array) -> Ref:
    """This program's part of a slot."""
    return self.pool.at[slot, lax.axis_index("head"), :, self._columns]

  def _fetch(self, row: Array, head: Array) -> None:
    """Loads all that the token brings; the state is on its way meanwhile."""
    slot, buffers = self.of.read[row], self.buffers

    @pl.when(slot >= 0)
    def _() -> None:
      plgpu.copy_gmem_to_smem(self._slot(slot), buffers.state, buffers.restored)

    key_head = head // (self.of.v.shape[1] // self.of.k.shape[1])
    copies = [
      (self.of.q.at[row, key_head], buffers.q),
      (self.of.k.at[row, key_head], buffers.k),
      (self.of.v.at[row, head, self._columns], buffers.v),
    ]
    if buffers.log_decay is not None:
      copies.append((self.of.log_decay.at[row, head], buffers.log_decay))
    load(copies, buffers.arrived)

  def _decayed(self, slot: Array) -> Float32[Array, "k v"]:
    """exp(a) S, and zeros where exp(a) is zero, whatever S holds there.

    So at ZERO exp(a) is taken for zero: what the buffer holds is selected away.
    A sentinel reaches no index.
    """
    buffers = self.buffers
    decay = self._decay()
    decay = choose(slot >= 0, decay, jnp.zeros_like(decay))

    @pl.when(slot >= 0)
    def _() -> None:
      plgpu.barrier_wait(buffers.restored)

    stored = as_accumulator(buffers.state[...], self.config)
    zeros = jnp.zeros_like(stored)
    if decay.ndim == 0:
      return choose(decay == 0, zeros, stored * decay)
    decay = along_rows(decay, stored.shape[1])
    return jnp.where(decay == 0, zeros, stored * decay)

  def _decay(self) -> Float32[Array, "*k"]:
    """exp(a) of the head, or of each of its key channels."""
    if self.buffers.log_decay is not None:
      return jnp.exp(self.buffers.log_decay[...])
    row, head = lax.axis_index("row"), lax.axis_index("head")
    return jnp.exp(self.of.log_decay[row, head])

  def _capture(self, slot: Array, state: Float32[Array, "k v"]) -> None:
    """Writes the state to its slot, if it has one."""

    @pl.when(slot >= 0)
    def _() -> None:
      self.buffers.state[...] = state
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(self.buffers.state, self._slot(slot))
      # Shared memory must not go while it is read; memory may come later.
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
