"""Gated delta rule as a Mosaic TPU kernel: one chunk of a head.

With A the inclusive cumulated log decay, D_ij = exp(A_i - A_j) for i >= j and
L = strictly lower (beta K K^T * D), as in `xla.py`, but solved once:

    U = (I + L)^-1 beta (V - (exp(A) K) S)
    O = (exp(A) Q) S + (Q K^T * D) U
    S' = exp(A_c) S + (exp(A_c - A) K)^T U
"""

import functools

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
from sparse_prefix_jax.kernels.mosaic_tpu.products import Products, products_of
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config


def _run(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: Config,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Runs the operation as one kernel, called as `gated_delta_rule` is.

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
    "gated_delta_rule",
  )


def _key_head(
  products: Products,
  length: Array,
  q: Float[Array, "c k"],
  k: Float[Array, "c k"],
) -> tuple[Array, ...]:
  """Makes [K; Q], K and [K; Q] K^T, with padding selected to zero.

  Products of keys are made once per key head; decays differ per value head.

  Args:
    products: How matrices are multiplied.
    length: How many tokens are real.
    q: The queries.
    k: The keys.
  """
  k, q = (products.exact(algebra.real_float32(x, length)) for x in (k, q))
  both = jnp.concatenate([k, q])
  return both, k, products(both, k, (1, 1))


def _value_head(
  products: Products,
  length: Array,
  both: Float[Array, "rows k"],
  k: Float[Array, "c k"],
  both_key: Float32[Array, "rows c"],
  v: Float[Array, "c v"],
  log_decay: Float32[Array, "1 c"],
  beta: Float32[Array, "1 c"],
  state: Float32[Array, "k v"],
) -> tuple[Float32[Array, "c v"], Float32[Array, "k v"]]:
  """Computes the outputs of one chunk and the state after it.

  The state enters before the system is solved, not after: one right-hand side
  of width v, instead of two of widths v and k whose solutions nearly cancel
  where the state predicts the values well.

  A decay here belongs to a whole token, so it scales rows of results and of U:
  keys and queries enter all products as they came.

  Args:
    products: How matrices are multiplied.
    length: How many tokens are real; the others are selected to zero before
      they enter.
    both: The keys, and the queries below them.
    k: The keys.
    both_key: The products K K^T and Q K^T.
    v: The values.
    log_decay: The log decay of each token.
    beta: The strength of each token.
    state: The state S.
  """
  size = v.shape[0]
  i, j = (algebra.iota((size, size), axis) for axis in (0, 1))
  v = algebra.real_float32(v, length)
  real = algebra.real_rows(size, length)
  beta = jnp.where(real, algebra.column(beta), 0.0)
  decay, from_start, to_end, whole = algebra.decays(
    algebra.real_log_decay(log_decay, length)
  )
  key_key, query_key = both_key[:size], both_key[size:]
  lower = jnp.where(i > j, key_key * decay * beta, 0.0)
  predicted = products(both, state)
  error = v - algebra.decayed(from_start, predicted[:size])
  u = algebra.solve_unit_lower(lower, beta * error, products)
  out = algebra.decayed(from_start, predicted[size:])
  out = out + products(query_key * decay, u)
  update = products(k, to_end * u, (0, 0))
  return out, state * whole + update


IMPLEMENTATION = implementation(_run)
STEP = step_implementation("gated_delta_rule_step")
