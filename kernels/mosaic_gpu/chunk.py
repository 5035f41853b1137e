"""Products inside one chunk and head: what the preparations share.

Decays. With A the inclusive cumulated log decay, D_ij = exp(A_i - A_j) for
i >= j. The sums over (j, i] are a product with a matrix of zeros and ones, the
log decays split into three bfloat16 parts that hold all of their 24 bits: each
is a sum over its own segment, and no digits are lost behind a strong decay.

The inverse of I + L, L strictly lower, is forward substitution: of blocks of 16
rows in float32 within a warp (`substitution.py`), and twice of pairs of blocks.
With the inverses A, B of two neighbouring diagonal blocks and C between them,

    [[A^-1, 0], [C, B^-1]]^-1 = [[A, 0], [-B C A, B]],

two products, whose left operands stay in registers. The two inverses of 32 rows
lie one below the other, [c c//2]: what is between them is known to be zero.
Every block that it holds is a true inverse of a part of I + L, of moderate
entries. (A product of powers of L, which doubles, runs through huge entries
that should cancel: it loses all digits where keys repeat.) Operands in two
bfloat16 parts keep 16 bits.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Float32

from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_columns,
  along_rows,
  cut_parts,
  indices,
  store_each,
  tile,
  vector,
)
from sparse_prefix_jax.kernels.mosaic_gpu.left_registers import dots
from sparse_prefix_jax.kernels.mosaic_gpu.substitution import (
  BLOCK_ROWS,
  invert_blocks,
)

RESET = -1e36
"""Stands for a log decay of -inf: exp gives the same zero, 0 * it is not NaN,
and a chunk of them sums to a finite number."""


WIDTH = CHUNK // 2
"""Columns of the tiles of a right operand whose left one is half a matrix."""


Halves: TypeAlias = tuple[Array, Array]
"""The left and the right half of a matrix. [c c//2] each"""


class Work(NamedTuple):
  """Shared memory for right operands in parts.

  Attributes:
    lower: The parts of L but for its last columns. [2 c c-16]
    inverse: The parts of two inverses, one below the other. [2 c c//2]
  """

  lower: Ref
  inverse: Ref


def work() -> Work:
  """The shared memory to ask for: a product can take 16 rows of it."""
  columns = CHUNK - BLOCK_ROWS, CHUNK // 2
  return Work(*(tile(2, CHUNK, x, width=BLOCK_ROWS) for x in columns))


def settle_resets(log_decay: Float32[Array, "*shape"]) -> Array:
  """Replaces what is below RESET by it, -inf and the least numbers there are.

  Sums of them are -inf, and so is what they are rounded to in bfloat16.
  """
  return jnp.where(log_decay < RESET, RESET, log_decay)


def heads_first(
  gate: Float32[Array, "n c hv"], real: Bool[Array, "n c"]
) -> Float32[Array, "n hv c"]:
  """Puts heads of a gate first, zero at padding, RESET for -inf.

  It runs outside of kernels.
  """
  gate = settle_resets(gate)
  return jnp.where(real[:, :, None], gate, 0.0).swapaxes(1, 2)


def transposed_keys(
  k: Float[Array, "n c h k"], real: Bool[Array, "n c"]
) -> Float[Array, "n h k c"]:
  """Transposes keys, with zeros at padding; it runs outside of kernels."""
  k = jnp.where(real[:, :, None, None], k, jnp.zeros_like(k))
  return k.transpose(0, 2, 3, 1)


def clear_padding(buffer: Ref, length: Array) -> None:
  """Sets rows past the length to zero: they are summed over, and may be NaN.

  Args:
    buffer: Shared memory. [c r]
    length: Real rows.
  """
  row = lax.broadcasted_iota(jnp.int32, buffer.shape, 0)
  rows = buffer[...]
  buffer[...] = jnp.where(row < length, rows, jnp.zeros_like(rows))


class Gate(NamedTuple):
  """Shared memory for log decays of a head and what is made of them.

  Attributes:
    log_decay: The log decays, zero at padding. [c]
    scales: exp(A) and exp(A_c - A). [2*c]
    decay: exp(A_c) in every element. [k]
  """

  log_decay: Ref
  scales: Ref
  decay: Ref


def gate(width: int) -> Gate:
  """The shared memory to ask for.

  Args:
    width: Keys of a head.
  """
  return Gate(vector(CHUNK), vector(2 * CHUNK), vector(width))


def ones_after() -> np.ndarray:
  """Ones below the diagonal, which a kernel is to load. [c c]"""
  return np.tril(np.ones((CHUNK, CHUNK)), -1).astype(jnp.bfloat16)


def decays(
  gate: Gate,
  after: Ref,
  others: Sequence[Sequence[tuple[Ref, Ref]]],
  config: MosaicGpuConfig,
) -> list[Array]:
  """Computes the decays D, zero above the diagonal, and sums of products.

  Args:
    gate: Its scales and decay are written; `plgpu.commit_smem` is to follow.
    after: `ones_after`. [c c]
    others: Sums of products that are under way beside it; see `dots`.
    config: Its `interpret` says whether the interpreter runs the kernel.

  Returns:
    D [c c], and each of the other sums.
  """
  row, column = indices()
  each = along_columns(gate.log_decay[...], CHUNK)
  until = jnp.where(column <= row, each, 0.0)
  to_end = jnp.sum(jnp.where(column > row, each, 0.0), axis=1)
  sums = [[(part, after) for part in cut_parts(until, 3)], *others]
  inside, *found = dots(sums, config)
  first = jnp.where(column[:, :8] == 0, inside[:, :8] + until[:, :8], 0.0)
  from_start = jnp.sum(first, axis=1)
  gate.scales[pl.ds(0, CHUNK)] = jnp.exp(from_start)
  gate.scales[pl.ds(CHUNK, CHUNK)] = jnp.exp(to_end)
  for start in range(0, gate.decay.shape[0], CHUNK):
    gate.decay[pl.ds(start, CHUNK)] = jnp.exp(from_start + to_end)
  return [jnp.exp(jnp.where(row >= column, inside, -jnp.inf)), *found]


def invert_unit_lower(
  lower: Float32[Array, "c c"], work: Work, config: MosaicGpuConfig
) -> Halves:
  """Computes (I + lower)^-1 by substitution on blocks.

  Args:
    lower: Strictly lower triangular.
    work: Buffers, which are overwritten.
    config: Its `interpret` says whether the interpreter runs the kernel.

  Returns:
    The left and the right half.
  """
  size, half = BLOCK_ROWS, CHUNK // 2
  inverse = invert_blocks(lower, config)
  store_each(work.lower, cut_parts(lower[:, : CHUNK - size], 2))
  known = cut_parts(inverse, 2)
  store_each(work.inverse, known)
  plgpu.commit_smem()
  odd = [x[:, size:] for x in known]
  sums = [
    _by_parts(odd, work.lower.at[:, pl.ds(x + size, size), pl.ds(x, size)])
    for x in (0, half)
  ]
  above = lax.broadcasted_iota(jnp.int32, (CHUNK, size), 0) < half
  found, other = dots(sums, config)
  found, other = jnp.where(above, found, 0.0), jnp.where(above, 0.0, other)
  pairs = [
    pair
    for x, start in ((found, 0), (other, half))
    for pair in _by_parts(
      cut_parts(x, 2), work.inverse.at[:, pl.ds(start, size)]
    )
  ]
  inverse = inverse - dots([pairs], config)[0]
  known = cut_parts(inverse, 2)
  plgpu.commit_smem()  # all have read what is overwritten
  store_each(work.inverse, known)
  plgpu.commit_smem()
  corner = work.lower.at[:, pl.ds(half, half), pl.ds(0, half)]
  (found,) = dots([_by_parts(known, corner)], config)
  pairs = _by_parts(cut_parts(found, 2), work.inverse.at[:, pl.ds(0, half)])
  (added,) = dots([pairs], config)
  above = lax.broadcasted_iota(jnp.int32, (CHUNK, half), 0) < half
  left = jnp.where(above, inverse, 0.0 - added)
  return left, jnp.where(above, 0.0, inverse)


def _by_parts(left: Sequence[Array], right: Ref) -> list[tuple[Array, Ref]]:
  """Pairs of two operands in two parts, but for the smallest term."""
  return [(left[i], right.at[j]) for i, j in ((0, 0), (0, 1), (1, 0))]


def scaled_columns(inverse: Halves, scale: Ref) -> Halves:
  """Multiplies column j by scale[j].

  Args:
    inverse: The matrix.
    scale: Shared memory. [c]
  """
  starts = (0, CHUNK // 2)
  found = [
    x * along_columns(scale[pl.ds(start, CHUNK // 2)], CHUNK)
    for x, start in zip(inverse, starts, strict=True)
  ]
  return found[0], found[1]


def cut_halves(inverse: Halves) -> tuple[list[Array], list[Array]]:
  """The two parts of each half."""
  left, right = inverse
  return cut_parts(left, 2), cut_parts(right, 2)


def times(
  inverse: tuple[list[Array], list[Array]], right: Sequence[Ref]
) -> list[tuple[Array, Ref]]:
  """Pairs of a product, for `dots`.

  Args:
    inverse: What `cut_halves` returns.
    right: The right operand, in one part or two. [c r] each
  """
  pairs = []
  for number, parts in enumerate(inverse):
    rows = pl.ds(number * CHUNK // 2, CHUNK // 2)
    for i, part in enumerate(parts):
      count = max(len(right) - i, 1)  # but for the smallest term
      pairs += [(part, x.at[rows]) for x in right[:count]]
  return pairs


def real_scores(
  scores: Float32[Array, "c c"], length: Array
) -> Float32[Array, "c c"]:
  """P for the scan: rows of padding, which may hold anything, are zero."""
  row, _ = indices()
  return jnp.where(row < length, scores, 0.0)


def emit_scores(stage: Ref, attention: Ref) -> None:
  """Begins to copy P to the scan.

  Args:
    stage: The parts of P, which `plgpu.commit_smem` made visible. [2 c c]
    attention: The `attention` of `state.Factors`. [2*c c]
  """
  for part in range(2):
    rows = pl.ds(part * CHUNK, CHUNK)
    plgpu.copy_smem_to_gmem(stage.at[part], attention.at[rows])


def lower_of(
  key_key: Float32[Array, "c c"], beta: Ref
) -> Float32[Array, "c c"]:
  """L = strictly lower (beta * key_key).

  Args:
    key_key: Decayed products of keys, zero in the rows of padding.
    beta: Strengths. [c]
  """
  row, column = indices()
  scaled = key_key * along_rows(beta[...], CHUNK)
  return jnp.where(row > column, scaled, 0.0)


class Values(NamedTuple):
  """V of a chunk and head on its way, by 64 columns.

  Attributes:
    source: V in global memory. [c v]
    tiles: Room for some tiles in shared memory. [c 64] each
    loading: A barrier for each of them.
    length: Real tokens; what V holds behind them is set to zero.
  """

  source: Ref
  tiles: Sequence[Ref]
  loading: Ref
  length: Array

  @property
  def starts(self) -> range:
    """The first column of each tile."""
    return range(0, self.source.shape[1], CHUNK)

  def load(self, number: int) -> None:
    """Starts to load a tile, if there is one of that number."""
    if number < len(self.starts):
      slot = number % len(self.tiles)
      columns = pl.ds(self.starts[number], CHUNK)
      plgpu.copy_gmem_to_smem(
        self.source.at[:, columns], self.tiles[slot], self.loading.at[slot]
      )

  def load_first(self) -> None:
    """Starts to load as many tiles as there is room for."""
    for number in range(len(self.tiles)):
      self.load(number)

  def arrived(self, number: int) -> Ref:
    """Waits for a tile, and returns where it is."""
    slot = number % len(self.tiles)
    plgpu.barrier_wait(self.loading.at[slot])
    buffer = self.tiles[slot]

    @pl.when(self.length < CHUNK)
    def _() -> None:
      clear_padding(buffer, self.length)
      plgpu.commit_smem()

    return buffer


def solve_values(
  inverse: tuple[list[Array], list[Array]],
  values: Values,
  solved: Ref,
  config: MosaicGpuConfig,
) -> None:
  """X_v = T (beta V), by 64 columns.

  Args:
    inverse: `cut_halves` of T, its columns scaled by beta.
    values: V, whose first tiles are on their way.
    solved: X_v in global memory. [c v]
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  for number, start in enumerate(values.starts):
    buffer = values.arrived(number)
    (found,) = dots([times(inverse, [buffer])], config)
    later = number + len(values.tiles)
    if later < len(values.starts):
      plgpu.commit_smem()  # all have read
      values.load(later)
    solved[:, pl.ds(start, CHUNK)] = found
