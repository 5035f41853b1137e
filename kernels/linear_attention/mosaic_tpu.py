"""Linear attention as a Mosaic TPU kernel: one chunk of a head.

With A the inclusive cumulated log decay and D_ij = exp(A_i - A_j) for i >= j:

    O = (exp(A) Q) S + (Q K^T * D) V
    S' = exp(A_c) S + (exp(A_c - A) K)^T V
"""

import functools

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
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: Config,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Runs the operation as one kernel, called as `linear_attention` is.

  The pool stays in HBM and is the result: a state moves when a request is
  resumed and when a chunk is captured, never between two chunks.
  """
  products = products_of(precision, q, k, v)
  return scan_heads(
    functools.partial(_key_head, products),
    functools.partial(_value_head, products),
    (q, k, v, log_decay),
    pool,
    chunks,
    config,
    "linear_attention",
  )


def _key_head(
  products: Products,
  length: Array,
  q: Float[Array, "c k"],
  k: Float[Array, "c k"],
) -> tuple[Array, ...]:
  """Makes Q, K and Q K^T, with padding selected to zero.

  The product is made once per key head; decays differ per value head.

  Args:
    products: How matrices are multiplied.
    length: How many tokens are real.
    q: The queries.
    k: The keys.
  """
  q, k = (products.exact(algebra.real_float32(x, length)) for x in (q, k))
  return q, k, products(q, k, (1, 1))


def _value_head(
  products: Products,
  length: Array,
  q: Float[Array, "c k"],
  k: Float[Array, "c k"],
  query_key: Float32[Array, "c c"],
  v: Float[Array, "c v"],
  log_decay: Float32[Array, "1 c"],
  state: Float32[Array, "k v"],
) -> tuple[Float32[Array, "c v"], Float32[Array, "k v"]]:
  """Computes the outputs of one chunk and the state after it.

  A decay here belongs to a whole token, so it scales rows of results and of V:
  keys and queries enter all products as they came.

  Args:
    products: How matrices are multiplied.
    length: How many tokens are real; the others are selected to zero before
      they enter.
    q: The queries.
    k: The keys.
    query_key: The products Q K^T of queries and keys.
    v: The values.
    log_decay: The log decay of each token.
    state: The state S.
  """
  v = algebra.real_float32(v, length)
  decay, from_start, to_end, whole = algebra.decays(
    algebra.real_log_decay(log_decay, length)
  )
  out = algebra.decayed(from_start, products(q, state))
  out = out + products(query_key * decay, products.exact(v))
  update = products(k, to_end * v, (0, 0))
  return out, state * whole + update


IMPLEMENTATION = implementation(_run)
STEP = step_implementation("linear_attention_step")
