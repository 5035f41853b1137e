"""The sequential half of the matrix-valued recurrences, on GPU.

gated_delta_rule, kimi_delta_attention and linear_attention differ in what can
be computed for all chunks and heads at once, because it does not depend on the
state: decays, products of keys with keys and queries, the triangular solve.
What is left is one scan, and it is the same for all of them:

    U  = X_v - X_k S                       [c v]
    O  = e_o * (Q S) + P U                 [c v]
    S' = e_s * S + K^T (e_u * U)           [k v]

with rows scaled by the vectors e_o, e_u [c] and e_s [k]. linear_attention has
no X_k. kimi_delta_attention has its decays in Q and K, and e_o = e_u = 1.

A program owns some value columns of one head of one segment (see `plan`), holds
its part of the state in float32 registers from the first chunk to the last,
restored from a slot and captured to slots on the way. So nothing of size k x v
moves per chunk but what is captured. The operands of the next chunks are on
their way to shared memory while this one is computed: the latency of a chunk is
that of three dependent products.

Precision. Products take bfloat16. The state goes into them as the sum of two
bfloat16 parts, U likewise: with one, an error of 2^-9 of the state would feed
back through U at every chunk, and without decay it adds up.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_rows,
  choose,
  dot,
  dot_parts,
  launch,
  new,
  parts,
  split,
  stacked,
  tile,
  vector,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import (
  LENGTH,
  WRITE,
  plan,
  scan_segment,
)

PARTS = 2
"""How many parts the state and U have, as operands of products."""
BLOCK = 64
"""Rows of the state per product."""


class Factors(NamedTuple):
  """What a preparation hands to the scan.

  Attributes:
    q: Queries Q; hq is h, or hv if they are scaled per value head, and then in
      two parts, one below the other: m is 1 or 2.
    keys: K^T, zero at padding; hk is h, or hv if they are scaled per value
      head, and then in two parts, likewise.
    attention: P in two parts, one below the other. A row past the length is
      zero.
    values: X_v, float32 or bfloat16.
    corrections: X_k, or None for no correction.
    scales: e_o and e_u, one behind the other.
    decay: e_s.
  """

  q: BFloat16[Array, "n m*c hq k"]
  keys: BFloat16[Array, "n hk m*k c"]
  attention: BFloat16[Array, "n hv 2*c c"]
  values: Float[Array, "n c hv v"]
  corrections: BFloat16[Array, "n hv c k"] | None
  scales: Float32[Array, "n hv 2*c"]
  decay: Float32[Array, "n hv k"]


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


def scan(
  factors: Factors,
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  config: MosaicGpuConfig,
  name: str,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Restores, scans and captures in one launch, with the pool in place.

  Args:
    factors: Factors of all chunks.
    pool: States, donated.
    chunks: What each chunk reads, writes and holds.
    config: `columns` per program and `stages` of loads.
    name: What a profile calls the kernel.

  Returns:
    The outputs, zero past a chunk's length, and the pool.
  """
  n, _, heads, value_width = factors.values.shape
  out = new(n, CHUNK, heads, value_width, dtype=jnp.float32)

  def body(operands: Ref, results: Ref, buffers: Ref) -> None:
    fields: Any = *operands, *results, buffers, config
    _Program(*fields).run()

  out, pool = launch(
    body,
    (plan(chunks), factors),
    [out, pool],
    _buffers(factors, config),
    grid={"chunk": n, "head": heads, "tile": value_width // config.columns},
    config=config,
    name=name,
  )
  return out, pool


def _buffers(factors: Factors, config: MosaicGpuConfig) -> _Buffers:
  width, columns, stages = factors.q.shape[3], config.columns, config.stages
  corrected = factors.corrections is not None
  loads = len([x for x in factors if x is not None])
  operand = functools.partial(tile, width=columns)
  chunk = Factors(
    q=operand(stages, factors.q.shape[1], width),
    keys=operand(stages, factors.keys.shape[2], CHUNK),
    attention=operand(stages, PARTS * CHUNK, CHUNK),
    values=tile(stages, CHUNK, columns, dtype=factors.values.dtype),
    corrections=operand(stages, CHUNK, width) if corrected else None,
    scales=vector(stages, 2 * CHUNK),
    decay=vector(stages, width),
  )
  return _Buffers(
    chunk=chunk,
    state=operand(PARTS, width, columns),
    updates=operand(2 * PARTS, CHUNK, columns),
    restored=tile(BLOCK, columns, dtype=jnp.float32),
    arrived=plgpu.Barrier(num_arrivals=loads, num_barriers=stages),
    restoring=plgpu.Barrier(),
  )


class _Program(NamedTuple):
  """One head, some value columns, and the segment of one chunk.

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
    """Scans the segment that begins at this program's chunk, if one does."""
    scan_segment(
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
    head, factors = lax.axis_index("head"), self.factors
    per_value_head = factors.attention.shape[1]
    query_head = head // (per_value_head // factors.q.shape[2])
    key_head = head // (per_value_head // factors.keys.shape[1])
    sources = factors._replace(
      q=factors.q.at[chunk, :, query_head],
      keys=factors.keys.at[chunk, key_head],
      attention=factors.attention.at[chunk, head],
      values=factors.values.at[chunk, :, head, self._columns],
      corrections=None
      if factors.corrections is None
      else factors.corrections.at[chunk, head],
      scales=factors.scales.at[chunk, head],
      decay=factors.decay.at[chunk, head],
    )
    for source, buffer in zip(sources, self._at(stage), strict=True):
      if source is not None:
        plgpu.copy_gmem_to_smem(source, buffer, self.buffers.arrived.at[stage])

  def _at(self, stage: Array | int) -> Ref:
    """The buffers of a stage, as `Factors`."""
    buffers = self.buffers.chunk
    return type(buffers)(*(x if x is None else x.at[stage] for x in buffers))

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
