"""One token of matrix states, on GPU: a state is read, advanced and written.

gated_delta_rule, kimi_delta_attention and linear_attention in decoding:

    S' = exp(a) S                 a per head, or per key channel
    u  = beta (v - S'^T k)        a delta rule; v itself without one
    S  = S' + k u^T
    o  = S'^T q + (k^T q) u       that is S^T q

A step is bound by memory: a state comes and goes, for a few operations on each
of its numbers. So it is one kernel and two passes. A program takes some value
columns of one head of one row: its tile of the slot comes from global memory
straight into registers, is advanced there, and goes back.

No warp has to do with another. Each has columns of its own, a thread four of
them and every few keys: both sums over keys are made of what is in its
registers, side by side, and a few exchanges within the warp. So there is no
shared memory and no barrier, and as many programs fit on a multiprocessor as
their registers allow.

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
  launch,
  new,
)

_ROWS = 64
"""What the keys of a head are a multiple of."""
_MOST_ROWS = 256
_COLUMNS = (64, 32, 16)
"""Columns of a tile that the heuristic tries."""
_POSSIBLE = (16, 32, 64, 128, 256)
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
  columns = config.columns
  if columns not in _POSSIBLE or v.shape[2] % columns:
    told = ", ".join(map(str, _POSSIBLE))
    return (
      f"cannot cut {v.shape[2]} value columns into {columns}; it takes one of "
      f"{told} that divides them"
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
  return advance(StepProgram, of, of.v.shape[0], pool, config, name)


def advance(
  program: type["StepProgram"],
  of: Any,
  rows: int,
  pool: Float32[Array, "s hv k v"],
  config: MosaicGpuConfig,
  name: str,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """Launches a program per row, value head and `columns` of its values.

  Args:
    program: What runs.
    of: The arrays that it reads, `read` and `write` among them.
    rows: Rows b.
    pool: States, donated.
    config: `columns` of a program.
    name: What a profile calls the kernel.

  Returns:
    The outputs and the pool.
  """
  _, heads, _, width = pool.shape

  def body(operands: Ref, results: Ref, _: Ref) -> None:
    fields: Any = operands, *results, config
    program(*fields).run()

  out, pool = launch(
    body,
    of,
    [new(rows, heads, width, dtype=jnp.float32), pool],
    (),
    grid={"row": rows, "head": heads, "tile": width // config.columns},
    config=config,
    name=name,
    apart=True,
  )
  return out, pool


class TokenHeads(NamedTuple):
  """What a token brings to one program.

  Attributes:
    q: The query. [k]
    k: The key. [k]
    v: The values. [v]
  """

  q: Array
  k: Array
  v: Array


class StepProgram(NamedTuple):
  """Some value columns of one head of one row.

  Attributes:
    of: Operands, in global memory: `read`, `write`, and what is loaded.
    out: The outputs. [b hv v]
    pool: The pool of states. [s hv k v]
    config: Sizes of the program.
  """

  of: Any
  out: Ref
  pool: Ref
  config: MosaicGpuConfig

  def run(self) -> None:
    """Reads a state, advances it by one token and writes it."""
    row, head = lax.axis_index("row"), lax.axis_index("head")
    width, columns = self.pool.shape[2], self.config.columns
    # What does not depend on the slot is on its way before that has come.
    read, write = self.of.read[row], self.of.write[row]
    loaded = self.load_heads(row, head)
    decay, strength = self.gates(row, head)
    state = self._decayed(read, decay)
    # While that is on its way:
    query, key, update = self.heads(loaded)
    query, key = (along_rows(x, columns) for x in (query, key))
    if strength is not None:
      update = strength * (update - jnp.sum(state * key, axis=0))
    # Not the sum over the new state: it would have to wait for the update.
    out = jnp.sum(state * query, axis=0)
    out = out + jnp.sum(key * query, axis=0) * update
    self.out[row, head, self.columns] = out
    state = state + key * along_columns(update, width)

    @pl.when(write >= 0)
    def _() -> None:
      self.pool[write, head, :, self.columns] = state

  def load_heads(self, row: Array, head: Array) -> TokenHeads:
    """Loads what the heads of a row's token are made from."""
    of: _Operands = self.of
    key_head = head // (of.v.shape[1] // of.k.shape[1])
    return TokenHeads(
      self.load(of.q.at[row, key_head]),
      self.load(of.k.at[row, key_head]),
      self.load(of.v.at[row, head, self.columns]),
    )

  def heads(self, loaded: TokenHeads) -> TokenHeads:
    """Makes the heads, in float32."""
    return TokenHeads(*(x.astype(jnp.float32) for x in loaded))

  def gates(self, row: Array, head: Array) -> tuple[Array, Array | None]:
    """Loads exp(a), per head or per key channel, and beta of a delta rule."""
    of: _Operands = self.of
    if of.log_decay.ndim == 3:
      decay = self.load(of.log_decay.at[row, head])
    else:
      decay = of.log_decay[row, head]
    return jnp.exp(decay), None if of.beta is None else of.beta[row, head]

  @property
  def columns(self) -> Any:
    """Where this program's columns lie in those of the head."""
    width = self.config.columns
    return pl.ds(pl.multiple_of(lax.axis_index("tile") * width, width), width)

  def _decayed(self, slot: Array, decay: Array) -> Float32[Array, "k v"]:
    """exp(a) S, and zeros where exp(a) is zero, whatever S holds there."""
    if decay.ndim == 0:
      return self._stored(slot, (slot >= 0) & (decay != 0)) * decay
    decay = along_rows(decay, self.config.columns)
    stored = self._stored(slot, slot >= 0)
    return jnp.where(decay == 0, jnp.zeros_like(stored), stored * decay)

  def _stored(self, slot: Array, wanted: Array) -> Float32[Array, "k v"]:
    """This program's part of a slot; zeros, and no access, if not wanted.

    So a sentinel reaches no index.
    """
    shape = self.pool.shape[2], self.config.columns

    def load() -> Array:
      place = slot, lax.axis_index("head"), slice(None), self.columns
      return self._placed(self.load(self.pool.at[place]))

    def zeros() -> Array:
      return self._placed(jnp.zeros(shape, jnp.float32))

    return lax.cond(wanted, load, zeros)

  def load(self, place: Ref) -> Array:
    """Loads from global memory, into whichever registers it is used from."""
    if self.config.interpret is not None:
      return place[...]
    # JAX 0.10 must be told an index, and JAX 0.11 must not.
    told = ((),) if "core_map" in vars(pl) else ()
    return plgpu.load(place, *told, optimized=False)

  def _placed(self, x: Float32[Array, "k v"]) -> Float32[Array, "k v"]:
    """Says which registers a tile lies in; the interpreter has none."""
    if self.config.interpret is not None:
      return x
    return plgpu.layout_cast(x, _layout(self.config.columns))


def _layout(columns: int) -> Any:
  """Registers of a tile: a quarter of the columns to each warp.

  A thread has 4 neighbours in each of its rows, 16 bytes; threads beside it go
  on with that row, the others of its warp have the next rows, and so on.

  Args:
    columns: Of the tile.
  """
  apiece, of_warp = min(4, columns // 8), columns // 4
  rows = 32 * apiece // of_warp
  cut = (rows, columns), (rows, of_warp), (apiece,)
  return plgpu.Layout.TILED(
    plgpu.Tiling(cut), warp_dims=(-4,), lane_dims=(-3, -2), vector_dim=-1
  )
