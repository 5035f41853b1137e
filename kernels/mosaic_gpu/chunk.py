"""Products inside one chunk and head: what the preparations share.

Decays. With A the inclusive cumulated log decay, D_ij = exp(A_i - A_j) for
i >= j. The sums over (j, i] are a product with a matrix of zeros and ones, the
log decays split into three bfloat16 parts that hold all of their 24 bits: each
is a sum over its own segment, and no digits are lost behind a strong decay.

The inverse of I + L, L strictly lower, is forward substitution on pairs of
blocks, of 1, 2, 4, ... 32 rows: with the inverses A, B of two neighbouring
diagonal blocks and C between them,

    [[A^-1, 0], [C, B^-1]]^-1 = [[A, 0], [-B C A, B]],

all pairs of a size in two products. Every block that it holds is a true inverse
of a part of I + L, of moderate entries. (A product of powers of L, which also
doubles, runs through huge entries that should cancel: it loses all digits where
keys repeat.) Operands in two bfloat16 parts keep 16 bits.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Float32

from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  Ref,
  along_columns,
  along_rows,
  dot,
  dot_parts,
  indices,
  load,
  parts,
  split,
  store_parts,
  tile,
)

RESET = -1e36
"""Stands for a log decay of -inf: exp gives the same zero, 0 * it is not NaN,
and a chunk of them sums to a finite number."""


class Work(NamedTuple):
  """Shared memory for operands in parts.

  Attributes:
    lower: The parts of a matrix below the diagonal. [3 c c]
    inverse: The parts of the inverse as far as it is known. [2 c c]
    between: The parts of what lies between two blocks. [2 c c]
  """

  lower: Ref
  inverse: Ref
  between: Ref


def work() -> Work:
  """The shared memory to ask for."""
  return Work(*(tile(count, CHUNK, CHUNK) for count in (3, 2, 2)))


def heads_first(
  gate: Float32[Array, "n c hv"], real: Bool[Array, "n c"]
) -> Float32[Array, "n hv c"]:
  """Puts heads of a gate first, zero at padding, RESET for -inf.

  It runs outside of kernels.
  """
  gate = jnp.where(gate == -jnp.inf, RESET, gate)
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


def decays(
  log_decay: Ref, scales: Ref, decay: Ref, work: Work
) -> Float32[Array, "c c"]:
  """Computes the decays D, which are zero above the diagonal.

  Args:
    log_decay: The log decays, zero at padding. [c]
    scales: Receives exp(A) and exp(A_c - A). [2*c]
    decay: Receives exp(A_c) in every element. [k]
    work: Buffers, which are overwritten.
  """
  row, column = indices()
  each = along_columns(log_decay[...], CHUNK)
  until = jnp.where(column <= row, each, 0.0)
  store_parts(work.lower, until, 3)
  work.between[0] = jnp.where(row > column, 1.0, 0.0).astype(jnp.bfloat16)
  from_start = jnp.sum(until, axis=1)
  to_end = jnp.sum(jnp.where(column > row, each, 0.0), axis=1)
  scales[pl.ds(0, CHUNK)] = jnp.exp(from_start)
  scales[pl.ds(CHUNK, CHUNK)] = jnp.exp(to_end)
  for start in range(0, decay.shape[0], CHUNK):
    decay[pl.ds(start, CHUNK)] = jnp.exp(from_start + to_end)
  plgpu.commit_smem()
  inside = dot(
    [(work.lower.at[part], work.between.at[0]) for part in range(3)],
    (CHUNK, CHUNK),
  )
  return jnp.exp(jnp.where(row >= column, inside, -jnp.inf))


def invert_unit_lower(
  lower: Float32[Array, "c c"], work: Work
) -> Float32[Array, "c c"]:
  """Computes (I + lower)^-1 by substitution on pairs of blocks.

  Args:
    lower: Strictly lower triangular.
    work: Buffers, which are overwritten.
  """
  row, column = indices()
  store_parts(work.lower, lower, 2)
  pairs = (row >> 1) == (column >> 1)
  inverse = jnp.where(row == column, 1.0, 0.0) - jnp.where(pairs, lower, 0.0)

  def level(size: Array, inverse: Array) -> Array:
    """Goes from inverses of blocks of 2^size rows to blocks of twice that."""
    store_parts(work.inverse, inverse, 2)
    plgpu.commit_smem()
    between = dot_parts(parts(work.lower), parts(work.inverse), CHUNK)
    neighbours = (row >> (size + 1)) == (column >> (size + 1))
    neighbours &= (row >> size) > (column >> size)
    store_parts(work.between, jnp.where(neighbours, between, 0.0), 2)
    plgpu.commit_smem()
    return inverse - dot_parts(parts(work.inverse), parts(work.between), CHUNK)

  return lax.fori_loop(1, 6, level, inverse)


def times(
  x: Float32[Array, "c c"], right: Ref, work: Work
) -> Float32[Array, "c r"]:
  """Multiplies x by a buffer of bfloat16.

  Args:
    x: The left operand, in registers; it is taken in two parts.
    right: The right operand, in shared memory. [c r]
    work: `inverse` of it is overwritten.
  """
  store_parts(work.inverse, x, 2)
  plgpu.commit_smem()
  pairs = [(part, right) for part in parts(work.inverse)]
  return dot(pairs, (CHUNK, right.shape[1]))


def emit_scores(
  scores: Float32[Array, "c c"], length: Array, attention: Ref
) -> None:
  """Writes P for the scan: two parts, rows of padding selected to zero.

  Args:
    scores: P; rows past the length may hold anything.
    length: How many tokens are real.
    attention: The `attention` of `state.Factors`, which is written. [2*c c]
  """
  row, _ = indices()
  scores = jnp.where(row < length, scores, 0.0)
  for part, value in enumerate(split(scores, 2)):
    attention[pl.ds(part * CHUNK, CHUNK)] = value


def lower_of(
  key_key: Float32[Array, "c c"], beta: Ref, length: Array
) -> Float32[Array, "c c"]:
  """L = strictly lower (beta * key_key), zero in the rows of padding.

  Args:
    key_key: Decayed products of keys; padding may hold anything.
    beta: Strengths. [c]
    length: How many tokens are real.
  """
  row, column = indices()
  below = (row > column) & (row < length)
  return jnp.where(below, key_key * along_rows(beta[...], CHUNK), 0.0)


def solve_values(
  inverse: Float32[Array, "c c"],
  values: tuple[Ref, Ref],
  length: Array,
  buffer: Ref,
  loading: Ref,
  work: Work,
) -> None:
  """X_v = T (beta V), by 64 columns: a load, a product, a store.

  Args:
    inverse: T, its columns scaled by beta.
    values: V and X_v in global memory. [c v]
    length: Real tokens; what V holds behind them is selected to zero.
    buffer: Room for a tile of V. [c 64]
    loading: Barrier of one arrival.
    work: `inverse` of it is overwritten.
  """
  source, solved = values
  for start in range(0, source.shape[1], CHUNK):
    columns = pl.ds(start, CHUNK)
    load([(source.at[:, columns], buffer)], loading)
    clear_padding(buffer, length)
    solved[:, columns] = times(inverse, buffer, work)
