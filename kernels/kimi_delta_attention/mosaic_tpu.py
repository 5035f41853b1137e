"""Kimi delta attention as a Mosaic TPU kernel: one chunk of a head.

A is the inclusive cumulated log decay, per key channel. exp(-A) overflows over
a chunk, so the decayed products of keys

    P_ij = sum_d x_id k_jd exp(A_id - A_jd),   i >= j

are made in blocks of 16 rows, with every exponent <= 0: in a diagonal block
channel by channel, and below it with the start r of the block row in between,
exp(A_i - A_r) on the left and exp(A_r - A_j) on the right. The rest is the
gated delta rule, with L = strictly lower (beta P):

    U = (I + L)^-1 beta (V - (exp(A) K) S)
    O = (exp(A) Q) S + P_q U
    S' = exp(A_c) S + (exp(A_c - A) K)^T U
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu.heads import (
  implementation,
  scan_heads,
)
from sparse_prefix_jax.kernels.mosaic_tpu.heads_step import (
  step_implementation,
)
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config


def _run(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv k"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: Config,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Runs the operation as one kernel, called as `kimi_delta_attention` is.

  The pool stays in HBM and is the result: a state moves when a request is
  resumed and when a chunk is captured, never between two chunks.
  """
  return scan_heads(
    _key_head,
    functools.partial(_value_head, precision),
    (q, k, v, log_decay, beta),
    pool,
    chunks,
    config,
    "kimi_delta_attention",
  )


def _key_head(
  length: Array, q: Float[Array, "c k"], k: Float[Array, "c k"]
) -> tuple[Array, ...]:
  """Makes Q and K, with padding selected to zero.

  Decays stand per value head and channel, so no product of keys is shared.

  Args:
    length: How many tokens are real.
    q: The queries.
    k: The keys.
  """
  return tuple(algebra.real_float32(x, length) for x in (q, k))


def _value_head(
  precision: lax.Precision,
  length: Array,
  q: Float32[Array, "c k"],
  k: Float32[Array, "c k"],
  v: Float[Array, "c v"],
  log_decay: Float32[Array, "c k"],
  beta: Float32[Array, "1 c"],
  state: Float32[Array, "k v"],
) -> tuple[Float32[Array, "c v"], Float32[Array, "k v"]]:
  """Computes the outputs of one chunk and the state after it.

  Args:
    precision: Precision of the products.
    length: How many tokens are real; the others are selected to zero before
      they enter.
    q: The queries.
    k: The keys.
    v: The values.
    log_decay: The log decay of each token and channel.
    beta: The strength of each token.
    state: The state S.
  """
  size = v.shape[0]
  i, j = (algebra.iota((size, size), axis) for axis in (0, 1))
  v = algebra.real_float32(v, length)
  real = algebra.real_rows(size, length)
  beta = jnp.where(real, algebra.column(beta), 0.0)
  log_decay = algebra.settle_resets(algebra.real_float32(log_decay, length))
  key_key, query_key = _decayed_products((k, q), k, log_decay, precision)
  before, after = (_sums(log_decay, x) for x in (j <= i, j > i))
  lower = jnp.where(i > j, key_key * beta, 0.0)
  error = v - algebra.dot(k * jnp.exp(before), state, precision)
  u = algebra.solve_unit_lower(lower, beta * error, precision)
  out = algebra.dot(q * jnp.exp(before), state, precision)
  out = out + algebra.dot(query_key, u, precision)
  whole = algebra.column(jnp.exp(before[size - 1 :]))
  update = algebra.dot(k * jnp.exp(after), u, precision, (0, 0))
  return out, state * whole + update


def _sums(log_decay: Float32[Array, "c k"], chosen: Array) -> Array:
  """Row i: the sum of the rows that `chosen` [c c] names in its row i.

  Always in float32 products: these are exponents, whose error is absolute.
  """
  chosen = jnp.where(chosen, 1.0, 0.0)
  return algebra.dot(chosen, log_decay, lax.Precision.HIGHEST)


def _decayed_products(
  lefts: Sequence[Float32[Array, "c k"]],
  k: Float32[Array, "c k"],
  log_decay: Float32[Array, "c k"],
  precision: lax.Precision,
) -> list[Float32[Array, "c c"]]:
  """P of each of `lefts` with the keys; zero above the diagonal.

  Below the diagonal blocks, a block row I that begins at token r takes two
  factors whose exponents are sums of decays, so neither exceeds 1:

      P_ij = sum_d (x_id exp(A_id - A_rd)) (k_jd exp(A_rd - A_jd)),  j < r <= i

  Args:
    lefts: What stands on the left of each product: keys, or queries.
    k: The keys.
    log_decay: The log decay of each token and channel, finite.
    precision: Precision of the products.
  """
  size = k.shape[0]
  i, j = (algebra.iota((size, size), axis) for axis in (0, 1))
  same_block = i // algebra.BLOCK == j // algebra.BLOCK
  # exp(A_i - A_r), r before the block of i: one for every block row.
  from_block = jnp.exp(_sums(log_decay, same_block & (j <= i)))
  products = [[jnp.zeros((algebra.BLOCK, size), jnp.float32)] for _ in lefts]
  for start in range(algebra.BLOCK, size, algebra.BLOCK):
    # exp(A_r - A_j) for the keys before the block row, and none for the rest.
    to_block = jnp.exp(_sums(log_decay, (j > i) & (j < start)))
    keys = jnp.where(algebra.real_rows(size, start), k * to_block, 0.0)
    rows = slice(start, start + algebra.BLOCK)
    for left, blocks in zip(lefts, products):
      block = (left * from_block)[rows]
      blocks.append(algebra.dot(block, keys, precision, (1, 1)))
  below = [jnp.concatenate(blocks, axis=0) for blocks in products]
  diagonal = _diagonal_blocks(lefts, k, log_decay)
  return [x + y for x, y in zip(below, diagonal)]


def _diagonal_blocks(
  lefts: Sequence[Float32[Array, "c k"]],
  k: Float32[Array, "c k"],
  log_decay: Float32[Array, "c k"],
) -> list[Float32[Array, "c c"]]:
  """P within the blocks of 16 rows, one column of all blocks at a time.

  From the last column to the first, the log decay between its key and the rows
  below grows by one token: a sum over its own segment. A column takes one exp
  and one sum along the lanes, for all rows of the chunk at once.

  Args:
    lefts: What stands on the left of each product: keys, or queries.
    k: The keys.
    log_decay: The log decay of each token and channel, finite.
  """
  size = k.shape[0]
  i, j = (algebra.iota((size, size), axis) for axis in (0, 1))
  in_block = algebra.iota(k.shape, 0) % algebra.BLOCK
  segment = jnp.zeros(k.shape, jnp.float32)
  products = [jnp.zeros((size, size), jnp.float32) for _ in lefts]
  for key in reversed(range(algebra.BLOCK)):
    if key + 1 < algebra.BLOCK:
      grown = segment + algebra.in_blocks(log_decay, key + 1)
      segment = jnp.where(in_block > key, grown, 0.0)
    keys = algebra.in_blocks(k, key) * jnp.exp(segment)
    keys = jnp.where(in_block >= key, keys, 0.0)
    here = j == i - i % algebra.BLOCK + key
    for index, left in enumerate(lefts):
      product = jnp.sum(left * keys, axis=1, keepdims=True)
      products[index] = jnp.where(here, product, products[index])
  return products


IMPLEMENTATION = implementation(_run)
STEP = step_implementation("kimi_delta_attention_step")
