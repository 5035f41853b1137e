"""Matrices of one chunk inside a Mosaic TPU kernel.

Every value has two dimensions or more (the compiler aborts on a loop that
carries fewer); a vector per token is a row [1 c] or a column [c 1]. Sums over
masks stand where XLA would transpose or gather: a mask is a comparison of two
iotas, made in registers, and exact, because all but one of the terms are zero.
Nothing is clipped and no NaN replaced: what has no meaning is selected away
before it enters a sum or an exp.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from sparse_prefix_jax.kernels.mosaic_tpu.fit import LANES
from sparse_prefix_jax.kernels.mosaic_tpu.products import (
  Products,
  masked_sums,
  of_all_heads,
)

BLOCK = 16
"""Rows that forward substitution eliminates one by one."""

RESET = -1e36
"""Stands for a log decay of -inf: exp gives 0, and 0 * it is not NaN."""


def iota(shape: tuple[int, ...], axis: int) -> Int32[Array, "r k"]:
  """The index along `axis`."""
  return lax.broadcasted_iota(jnp.int32, shape, axis)


def real_rows(size: int, length: Array | int) -> Bool[Array, "c 1"]:
  """Says which of `size` rows hold one of the `length` real tokens."""
  return iota((size, 1), 0) < length


def column(row: Float32[Array, "1 c"]) -> Float32[Array, "c 1"]:
  """A row stood up: the row sums of its diagonal matrix.

  Gates arrive as rows, which take c numbers of a register; columns take whole
  registers, 128 times the memory, and are made where they are needed.
  """
  shape = row.shape[1], row.shape[1]
  diagonal = iota(shape, 0) == iota(shape, 1)
  return jnp.sum(jnp.where(diagonal, row, 0.0), axis=1, keepdims=True)


def real_float32(x: Float[Array, "c k"], length: Array) -> Array:
  """Converts to float32 and selects the rows of padding to zero.

  Args:
    x: An array with a row per token.
    length: Real tokens; the rows past them may hold anything.
  """
  x = x.astype(jnp.float32)
  return jnp.where(real_rows(x.shape[0], length), x, 0.0)


def settle_resets(log_decay: Float32[Array, "r c"]) -> Float32[Array, "r c"]:
  """Replaces -inf by RESET, and what is below it, whose sums are -inf.

  A reset is -inf; a sum over a mask would multiply it by zero.
  """
  return jnp.where(log_decay < RESET, RESET, log_decay)


def real_log_decay(
  log_decay: Float32[Array, "1 c"], length: Array
) -> Float32[Array, "1 c"]:
  """Selects padding to no decay, and -inf to RESET."""
  real = iota(log_decay.shape, 1) < length
  return settle_resets(jnp.where(real, log_decay, 0.0))


def decays(
  log_decay: Float32[Array, "1 c"],
) -> tuple[
  Float32[Array, "c c"],
  Float32[Array, "c 1"],
  Float32[Array, "c 1"],
  Float32[Array, "1 1"],
]:
  """Computes exp(A_i - A_j) for i >= j, exp(A_i), exp(A_c - A_j), exp(A_c).

  Every difference is summed over its own segment, never subtracted: after one
  strong decay a difference of cumulated sums has lost all digits.

  Args:
    log_decay: a of one chunk, finite; A is its inclusive cumulated sum.

  Returns:
    Decay from each token to each [c c], from the start to each token [c 1],
    from each token to the end [c 1], and over the chunk [1 1]; all in [0, 1].
  """
  shape = log_decay.shape[1], log_decay.shape[1]
  i, j = iota(shape, 0), iota(shape, 1)
  # segment_ij = sum over l <= i of a_l [l > j]
  after = jnp.where(i > j, column(log_decay), 0.0)
  inclusive = jnp.where(i >= j, 1.0, 0.0)
  segment = masked_sums(inclusive, after)
  decay = jnp.exp(jnp.where(i >= j, segment, -jnp.inf))
  from_start = jnp.where(j <= i, log_decay, 0.0)
  to_end = jnp.where(j > i, log_decay, 0.0)
  from_start, to_end, whole = (
    jnp.exp(jnp.sum(x, axis=1, keepdims=True))
    for x in (from_start, to_end, log_decay)
  )
  return decay, from_start, to_end, whole


def decayed(decay: Float32[Array, "..."], x: Float32[Array, "..."]) -> Array:
  """What is left of x; zero where the decay is, whatever x has come to."""
  return jnp.where(decay == 0, 0.0, decay * x)


def solve_unit_lower(
  lower: Float32[Array, "c c"],
  right: Float32[Array, "c r"],
  products: Products,
) -> Float32[Array, "c r"]:
  """(I + lower)^-1 right by forward substitution in blocks of 16 rows.

  With X the inverse of the diagonal blocks and M = X (lower - its diagonal
  blocks), block row b of the solution is X right - M solution, where all of the
  solution that M_b meets is known.

  Args:
    lower: Strictly lower triangular; c is a multiple of BLOCK.
    right: Right-hand sides.
    products: How matrices are multiplied.

  Returns:
    The solution, to the rounding of substitution also where keys repeat and
    strengths are 1: nothing that grows is subtracted from anything.
  """
  size, width = right.shape
  i, j = iota(lower.shape, 0), iota(lower.shape, 1)
  same_block = i // BLOCK == j // BLOCK
  inverse = _invert_diagonal_blocks(jnp.where(same_block, lower, 0.0))
  inverse = jnp.where(same_block, inverse, 0.0)
  below = jnp.where(same_block, 0.0, lower)
  both = products(inverse, jnp.concatenate([right, below], axis=1))
  right, below = both[:, :width], both[:, width:]
  solved = right[:BLOCK]
  for start in range(BLOCK, size, BLOCK):
    rows = slice(start, start + BLOCK)
    unknown = jnp.zeros((size - start, width), jnp.float32)
    known = jnp.concatenate([solved, unknown], axis=0)
    fresh = right[rows] - products(below[rows], known)
    solved = jnp.concatenate([solved, fresh], axis=0)
  return solved


def _invert_diagonal_blocks(
  lower: Float32[Array, "c c"],
) -> Float32[Array, "c c"]:
  """(I + lower)^-1 for block-diagonal `lower`, all blocks row by row.

  Right-looking elimination: when row j of a block is final, its multiples are
  taken from the rows below it. All blocks take their step at once, beside one
  another in BLOCK rows, so 15 steps do, of a register or two each.

  Args:
    lower: Strictly lower triangular blocks of BLOCK rows, zero elsewhere.

  Returns:
    The inverses beside one another, in every block of rows: those of other
    blocks are to be selected away.
  """
  blocks = lower.shape[0] // BLOCK
  lower = jnp.sum(lower.reshape(blocks, BLOCK, -1), axis=0)
  i, j = iota(lower.shape, 0), iota(lower.shape, 1)
  inverse = jnp.where(i == j % BLOCK, 1.0, 0.0)
  for row in range(BLOCK - 1):
    factor = _lanes(lower, j - j % BLOCK + row)
    inverse = inverse - factor * in_blocks(inverse, row)
  return jnp.concatenate([inverse] * blocks, axis=0)


@of_all_heads
def _lanes(
  x: Float32[Array, "r c"], index: Int32[Array, "r c"]
) -> Float32[Array, "r c"]:
  """Of every row, the numbers of these columns, each from its own register.

  Mosaic gathers within a register and not across several.
  """
  pieces = (
    jnp.take_along_axis(
      x[:, start : start + LANES],
      index[:, start : start + LANES] - start,
      axis=1,
      mode="promise_in_bounds",
    )
    for start in range(0, x.shape[1], LANES)
  )
  return jnp.concatenate(list(pieces), axis=1)


def in_blocks(x: Float32[Array, "c v"], row: int) -> Float32[Array, "c v"]:
  """Row `row` of every block of BLOCK rows, in each row of the block.

  Args:
    x: c rows, a multiple of BLOCK: blocks are whole registers.
    row: Which row, a Python number.
  """
  blocks = x.reshape(-1, BLOCK, x.shape[1])
  chosen = blocks[:, row : row + 1]
  return jnp.broadcast_to(chosen, blocks.shape).reshape(x.shape)
