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
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  SHARED_BYTES,
  refused_device,
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
_MOST_KEYS = 256
"""Rows of one bulk copy."""
_FEWEST_COLUMNS = 16
_TILE = 8192
"""Numbers of a tile, at most: 64 registers of each thread."""
_MOST_PROGRAMS = 65_535
"""Along the first axis of a grid."""


def step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv *k"],
  beta: Float32[Array, "b hv"] | None,
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  config: MosaicGpuConfig,
  name: str,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """Advances b rows by one token in one launch, with the pool in place.

  Args:
    q: Queries, bfloat16 or float32.
    k: Keys, likewise.
    v: Values, likewise.
    log_decay: a, per head or per key channel.
    beta: Strength of a delta rule, or None where nothing is subtracted.
    pool: States, donated.
    read: A slot, or ZERO.
    write: A slot that no other row reads or writes, or NONE.
    config: `columns` of a program.
    name: What a profile calls the kernel.

  Returns:
    out and pool.
  """
  b, heads, value_width = v.shape
  width, columns = q.shape[2], config.columns
  channels = log_decay.ndim == 3
  buffers = _Buffers(
    state=tile(width, columns, dtype=jnp.float32),
    q=plgpu.SMEM((width,), q.dtype),
    k=plgpu.SMEM((width,), k.dtype),
    v=plgpu.SMEM((columns,), v.dtype),
    log_decay=vector(width) if channels else None,
    arrived=plgpu.Barrier(num_arrivals=4 if channels else 3),
    restored=plgpu.Barrier(),
  )

  def body(operands: Any, results: Any, buffers: Any) -> None:
    fields: Any = *operands, *results, buffers, config
    _Program(*fields).run()

  operands = q, k, v, log_decay, beta, read, write
  out, pool = launch(
    body,
    operands,
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
    q: The queries, in global memory. [b h k]
    k: The keys. [b h k]
    v: The values. [b hv v]
    log_decay: a. [b hv] or [b hv k]
    beta: Strengths, or None. [b hv]
    read: Slots, or ZERO. [b]
    write: Slots, or NONE. [b]
    out: The outputs. [b hv v]
    pool: The pool of states. [s hv k v]
    buffers: Buffers, in shared memory.
    config: Sizes of the program.
  """

  q: Ref
  k: Ref
  v: Ref
  log_decay: Ref
  beta: Ref
  read: Ref
  write: Ref
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
    state = self._decay(self._restore(self.read[row]))
    if self.beta is not None:
      predicted = jnp.sum(state * key, axis=0)
      update = self.beta[row, head] * (update - predicted)
    state = state + key * along_columns(update, width)
    self.out[row, head, self._columns] = jnp.sum(state * query, axis=0)
    self._capture(self.write[row], state)

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
    slot, buffers = self.read[row], self.buffers

    @pl.when(slot >= 0)
    def _() -> None:
      plgpu.copy_gmem_to_smem(
        self._slot(slot), buffers.state, buffers.restored
      )

    key_head = head // (self.v.shape[1] // self.k.shape[1])
    copies = [
      (self.q.at[row, key_head], buffers.q),
      (self.k.at[row, key_head], buffers.k),
      (self.v.at[row, head, self._columns], buffers.v),
    ]
    if buffers.log_decay is not None:
      copies.append((self.log_decay.at[row, head], buffers.log_decay))
    load(copies, buffers.arrived)

  def _restore(self, slot: Array) -> Float32[Array, "k v"]:
    """The state before the token: that of the slot, or zeros at ZERO.

    A sentinel reaches no index, and what the buffer holds at ZERO is selected
    away.
    """
    buffers = self.buffers

    @pl.when(slot >= 0)
    def _() -> None:
      plgpu.barrier_wait(buffers.restored)

    stored = as_accumulator(buffers.state[...], self.config)
    return choose(slot >= 0, stored, jnp.zeros_like(stored))

  def _decay(self, state: Float32[Array, "k v"]) -> Float32[Array, "k v"]:
    """exp(a) S, and zeros where exp(a) is zero, whatever S holds there."""
    zeros = jnp.zeros_like(state)
    if self.buffers.log_decay is None:
      row, head = lax.axis_index("row"), lax.axis_index("head")
      decay = jnp.exp(self.log_decay[row, head])
      return choose(decay > 0, state * decay, zeros)
    decay = jnp.exp(self.buffers.log_decay[...])
    decay = along_rows(decay, state.shape[1])
    return jnp.where(decay > 0, state * decay, zeros)

  def _capture(self, slot: Array, state: Float32[Array, "k v"]) -> None:
    """Writes the state to its slot, if it has one."""

    @pl.when(slot >= 0)
    def _() -> None:
      self.buffers.state[...] = state
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(self.buffers.state, self._slot(slot))
      plgpu.wait_smem_to_gmem(0)
