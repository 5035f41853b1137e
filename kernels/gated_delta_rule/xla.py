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

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks, packed_scan

Dot: TypeAlias = Callable[[Array, Array], Array]
"""A matrix product at the configured precision."""

_BLOCK = 16
_RESET = -1e36  # exp gives the same zero as for -inf, and 0 * it is not NaN


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
  """The operation as a scan over chunks; arguments of `gated_delta_rule`."""

  def cell(state: Array, x: Any, length: Array) -> tuple[Array, Array]:
    return chunk(state, *x, length=length, precision=precision)

  return packed_scan(cell, pool, (q, k, v, log_decay, beta), chunks)


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
  tokens, groups = q.shape[0], v.shape[1] // k.shape[1]
  real = jnp.arange(tokens) < length
  q, k, v = (_heads_first(x, real) for x in (q, k, v))
  log_decay, beta = (
    jnp.where(real[:, None], x, 0.0).T for x in (log_decay, beta)
  )
  log_decay = jnp.where(log_decay == -jnp.inf, _RESET, log_decay)

  def dot(x: Array, y: Array) -> Array:
    return jnp.matmul(
      x, y, precision=precision, preferred_element_type=jnp.float32
    )

  def per_value_head(x: Array) -> Array:
    return jnp.repeat(x, groups, axis=0) if groups > 1 else x

  k_transposed = k.swapaxes(1, 2)
  decay, decay_from_start = _decays(log_decay, dot)
  # Products of keys are made once per key head, the decays differ per value
  # head.
  key_key = per_value_head(dot(k, k_transposed)) * decay
  query_key = per_value_head(dot(q, k_transposed)) * decay
  q, k = per_value_head(q), per_value_head(k)
  strictly_lower = jnp.tril(jnp.ones((1, tokens, tokens), bool), -1)
  lower = jnp.where(strictly_lower, key_key * beta[:, :, None], 0.0)
  scale = beta[:, :, None]
  right = jnp.concatenate(
    [v * scale, k * (scale * decay_from_start[:, :, None])], axis=-1
  )
  solved = solve_unit_lower(lower, right, dot)
  value_width = v.shape[-1]
  u = solved[..., :value_width] - dot(solved[..., value_width:], state)
  out = dot(q * decay_from_start[:, :, None], state) + dot(query_key, u)
  k_to_end = k * decay[:, -1, :, None]
  state = state * decay_from_start[:, -1, None, None] + dot(
    k_to_end.swapaxes(1, 2), u
  )
  return state, out.swapaxes(0, 1)


def step(
  state: Float32[Array, "b hv k v"],
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv"],
  beta: Float32[Array, "b hv"],
) -> tuple[Float32[Array, "b hv k v"], Float32[Array, "b hv v"]]:
  """One token of b requests, the recurrence as it is written.

  Sums over k, never a product of one row, whose bits would be its own.
  """
  groups = v.shape[1] // k.shape[1]
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  if groups > 1:
    q, k = (jnp.repeat(x, groups, axis=1) for x in (q, k))
  state = state * jnp.exp(log_decay)[..., None, None]
  predicted = jnp.sum(state * k[..., None], axis=-2)
  u = beta[..., None] * (v - predicted)
  state = state + k[..., None] * u[..., None, :]
  return state, jnp.sum(state * q[..., None], axis=-2)


def solve_unit_lower(
  lower: Float32[Array, "h c c"], right: Float32[Array, "h c r"], dot: Dot
) -> Float32[Array, "h c r"]:
  """(I + lower)^-1 right by forward substitution in blocks of 16 rows.

  Substitution stays at rounding error for equal and correlated keys, where a
  product of powers of `lower` (nilpotent doubling) loses every digit.

  Args:
    lower: Strictly lower triangular matrices.
    right: Right-hand sides.
    dot: Matrix product at the configured precision.
  """
  size = lower.shape[-1]
  block = min(_BLOCK, size)
  starts = range(0, size, block)
  diagonal = jnp.stack(
    [lower[:, i : i + block, i : i + block] for i in starts], axis=1
  )
  inverse = _invert_unit_lower(diagonal)
  solved = dot(inverse[:, 0], right[:, :block])
  for index, start in enumerate(starts[1:], start=1):
    rows = slice(start, start + block)
    known = dot(lower[:, rows, :start], solved)
    fresh = dot(inverse[:, index], right[:, rows] - known)
    solved = jnp.concatenate([solved, fresh], axis=1)
  return solved


def _invert_unit_lower(
  lower: Float32[Array, "h blocks r r"],
) -> Float32[Array, "h blocks r r"]:
  """(I + lower)^-1 row by row: X_i = e_i - sum_{j<i} lower_ij X_j."""
  size = lower.shape[-1]
  # Rows first, the batch last: each step is one long vector operation.
  coefficients = lower.transpose(2, 3, 0, 1).reshape(size, size, 1, -1)
  batch = coefficients.shape[-1]
  identity = jnp.broadcast_to(
    jnp.eye(size, dtype=lower.dtype)[:, :, None], (size, size, batch)
  )

  def row(i: Array, inverse: Array) -> Array:
    known = jnp.sum(coefficients[i] * inverse, axis=0)
    return inverse.at[i].add(-known)

  inverse = lax.fori_loop(1, size, row, identity, unroll=False)
  return inverse.reshape(size, size, *lower.shape[:2]).transpose(2, 3, 0, 1)


def _decays(
  log_decay: Float32[Array, "hv c"], dot: Dot
) -> tuple[Float32[Array, "hv c c"], Float32[Array, "hv c"]]:
  """exp(A_i - A_j) for i >= j (0 above), and exp(A_i).

  A_i - A_j is summed over its own segment: a difference of cumulated sums loses
  all digits after one strong decay. It is masked before exp, for gradients.
  """
  size = log_decay.shape[-1]
  inclusive = jnp.tril(jnp.ones((size, size), jnp.float32))
  after = inclusive - jnp.eye(size, dtype=jnp.float32)
  # segment_ij = sum over l <= i of log_decay_l [l > j]
  segment = dot(inclusive[None], log_decay[:, :, None] * after[None])
  from_start = dot(log_decay, inclusive.T)
  on_or_below = (inclusive > 0)[None]
  decay = jnp.exp(jnp.where(on_or_below, segment, -jnp.inf))
  return decay, jnp.exp(from_start)


def _heads_first(
  x: Float[Array, "c h k"], real: Bool[Array, "c"]
) -> Float32[Array, "h c k"]:
  """Float32, padding selected to zero, [c h k] -> [h c k]."""
  x = jnp.where(real[:, None, None], x.astype(jnp.float32), 0.0)
  return x.swapaxes(0, 1)
