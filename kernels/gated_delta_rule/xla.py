"""Gated delta rule in plain XLA operations: the form that runs everywhere.

With A the inclusive cumulated log decay of a chunk, D_ij = exp(A_i - A_j) for
i >= j, and L = strictly lower (beta K K^T * D):

    X = (I + L)^-1 [beta V, beta exp(A) K] = [X_v, X_k]
    U = X_v - X_k S
    O = (exp(A) Q) S + (Q K^T * D) U
    S' = exp(A_c) S + (exp(A_c - A) K)^T U

which is the chunked form of S_t = exp(a_t) S_{t-1} + k_t u_t^T with
u_t = beta_t (v_t - k_t exp(a_t) S_{t-1}) and o_t = q_t S_t.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import chunk_algebra as algebra
from sparse_prefix_jax.kernels.chunks import Chunks, packed_scan, step_rows


def packed(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Scans over the chunks; it is called as `gated_delta_rule` is."""

  def cell(state: Array, x: Any, length: Array) -> tuple[Array, Array]:
    return chunk(state, *x, length=length, precision=precision)

  return packed_scan(cell, pool, (q, k, v, log_decay, beta), chunks)


def step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv"],
  beta: Float32[Array, "b hv"],
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """Takes one token of b rows; called as `gated_delta_rule_step` is."""
  xs = (q, k, v, log_decay[..., None], beta)
  return step_rows(algebra.step, pool, xs, read, write)


def chunk(
  state: Float32[Array, "hv k v"],
  q: Float[Array, "c h k"],
  k: Float[Array, "c h k"],
  v: Float[Array, "c hv v"],
  log_decay: Float32[Array, "c hv"],
  beta: Float32[Array, "c hv"],
  length: Array,
  precision: lax.Precision,
) -> tuple[Float32[Array, "hv k v"], Float32[Array, "c hv v"]]:
  """Advances one state over one chunk of which `length` tokens are real.

  Everything is float32 from here on. Padding is selected to zero keys, values,
  strengths and decays, which leaves a state as it is.

  Returns:
    The state after the real tokens, and the outputs; rows of padding hold
    finite numbers of no meaning.
  """
  real = jnp.arange(q.shape[0], dtype=jnp.int32) < length
  q, k, v, log_decay, beta = (
    algebra.heads_first(x, real) for x in (q, k, v, log_decay, beta)
  )
  dot, heads = algebra.dot_at(precision), v.shape[0]
  log_decay = algebra.settle_resets(log_decay)
  decay, decay_from_start = algebra.head_decays(log_decay, dot)
  # Products of keys are made once per key head, the decays differ per value
  # head.
  k_transposed = k.swapaxes(1, 2)
  key_key = algebra.repeat_heads(dot(k, k_transposed), heads) * decay
  query_key = algebra.repeat_heads(dot(q, k_transposed), heads) * decay
  q, k = (algebra.repeat_heads(x, heads) for x in (q, k))
  decay_in = decay_from_start[:, :, None]
  x_v, x_k = algebra.solve_delta_rule(key_key, k, v, beta, decay_in, dot)
  prepared = algebra.Prepared(
    x_v=x_v,
    x_k=x_k,
    q_in=q * decay_in,
    scores=query_key,
    k_out=k * decay[:, -1, :, None],
    decay=decay_in[:, -1:],
  )
  return algebra.advance(state, prepared, dot)
