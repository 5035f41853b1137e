"""Kimi delta attention as a Mosaic TPU kernel: one chunk of a head.

A is the inclusive cumulated log decay, per key channel. exp(-A) overflows over
a chunk, so the decayed products of keys

    P_ij = sum_d x_id k_jd exp(A_id - A_jd),   i >= j

are made in pairs of halves, of 1, 2, 4, ... tokens: i and j stand in the second
and in the first half of one such pair, and in no other. With r the start of the
second half in between, exp(A_i - A_r) goes to the left and exp(A_r - A_j) to
the right, and every exponent is a sum of decays, at most 0. The rest is the
gated delta rule, with L = strictly lower (beta P):

    U = (I + L)^-1 beta (V - (exp(A) K) S)
    O = (exp(A) Q) S + P_q U
    S' = exp(A_c) S + (exp(A_c - A) K)^T U
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu.heads import (
  implementation,
  scan_heads,
)
from sparse_prefix_jax.kernels.mosaic_tpu.heads_step import (
  step_implementation,
)
from sparse_prefix_jax.kernels.mosaic_tpu.products import (
  Products,
  masked_sums,
  products_of,
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
  products = products_of(precision, q, k, v)
  return scan_heads(
    functools.partial(_key_head, products),
    functools.partial(_value_head, products),
    (q, k, v, log_decay, beta),
    pool,
    chunks,
    config,
    "kimi_delta_attention",
  )


def _key_head(
  products: Products,
  length: Array,
  q: Float[Array, "c k"],
  k: Float[Array, "c k"],
) -> tuple[Array, ...]:
  """Makes K, Q and the diagonals of K K^T and Q K^T, with zeros at padding.

  Decays stand per value head and channel, so no other product of keys is
  shared: a token has no decay against itself.

  Args:
    products: How matrices are multiplied.
    length: How many tokens are real.
    q: The queries.
    k: The keys.
  """
  k, q = (algebra.real_float32(x, length) for x in (k, q))
  left, right = (products.exact(x) for x in (jnp.concatenate([k, q]), k))
  undecayed = products(left, right, (1, 1))
  i, j = (algebra.iota(undecayed.shape, axis) for axis in (0, 1))
  return k, q, jnp.where(i % k.shape[0] == j, undecayed, 0.0)


def _value_head(
  products: Products,
  length: Array,
  k: Float32[Array, "c k"],
  q: Float32[Array, "c k"],
  diagonals: Float32[Array, "rows c"],
  v: Float[Array, "c v"],
  log_decay: Float32[Array, "c k"],
  beta: Float32[Array, "1 c"],
  state: Float32[Array, "k v"],
) -> tuple[Float32[Array, "c v"], Float32[Array, "k v"]]:
  """Computes the outputs of one chunk and the state after it.

  Args:
    products: How matrices are multiplied.
    length: How many tokens are real; the others are selected to zero before
      they enter.
    k: The keys.
    q: The queries.
    diagonals: Those of K K^T and below of Q K^T, and zeros.
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
  halves = [2**n for n in range(size.bit_length()) if 2**n < size]
  masks = [j <= i, j > i, *(_between(i, j, half) for half in halves)]
  from_start, to_end, *to_middle = _decays(masks, log_decay)
  decayed = diagonals
  for half, decay in zip(halves, to_middle, strict=True):
    fresh = _pairs_of_halves(k * decay, q * decay, half, products)
    decayed = jnp.where(_met_in(half, size), fresh, decayed)
  key_key, query_key = decayed[:size], decayed[size:]
  lower = jnp.where(i > j, key_key * beta, 0.0)
  both = jnp.concatenate([k * from_start, q * from_start])
  predicted = products(both, state)
  error = v - predicted[:size]
  u = algebra.solve_unit_lower(lower, beta * error, products)
  out = predicted[size:] + products(query_key, u)
  whole = algebra.column(from_start[size - 1 :])
  update = products(k * to_end, u, (0, 0))
  return out, state * whole + update


def _decays(
  masks: Sequence[Bool[Array, "c c"]], log_decay: Float32[Array, "c k"]
) -> list[Float32[Array, "c k"]]:
  """The decay over the tokens that a row of each mask names, for all rows.

  Always sums in float32: these are exponents, whose error is absolute.
  """
  ones = jnp.concatenate([jnp.where(mask, 1.0, 0.0) for mask in masks])
  return jnp.split(jnp.exp(masked_sums(ones, log_decay)), len(masks))


def _between(
  i: Int32[Array, "c c"], j: Int32[Array, "c c"], half: int
) -> Bool[Array, "c c"]:
  """Whether j is between token i and the middle of its pair of halves.

  In a second half these are the tokens from its first to i itself, in a first
  half those after i.
  """
  second = i // half % 2 == 1
  return (i // half == j // half) & (second ^ (j > i))


def _met_in(half: int, size: int) -> Bool[Array, "rows c"]:
  """Whether i is in the second and j in the first half of one pair: [2 c c]."""
  i, j = (algebra.iota((2 * size, size), axis) for axis in (0, 1))
  i = i % size // half
  return (i % 2 == 1) & (i == j // half + 1)


def _pairs_of_halves(
  k: Float32[Array, "c k"],
  q: Float32[Array, "c k"],
  half: int,
  products: Products,
) -> Float32[Array, "rows c"]:
  """Products of the second halves of K, and below of Q, with first halves of K.

  Only rows of second halves have a meaning on the left. Queries take the rows
  of first halves there, so one product of c rows makes both.

  Args:
    k: Keys, decayed from or to the middle of their pair.
    q: Queries, the same.
    half: Tokens of a half.
    products: How matrices are multiplied.
  """
  second = algebra.iota(q.shape, 0) // half % 2 == 1
  left = jnp.where(second, k, jnp.roll(q, -half, axis=0))
  fresh = products(left, k, (1, 1))
  return jnp.concatenate([fresh, jnp.roll(fresh, half, axis=0)])


IMPLEMENTATION = implementation(_run)
STEP = step_implementation("kimi_delta_attention_step")
