"""What the operations with a matrix state share, in XLA: a chunk, a token.

With A the inclusive cumulated log decay of a chunk, D_ij = exp(A_i - A_j) for
i >= j, every such operation prepares quantities that do not see the state and
then advances it:

    U = X_v - X_k S
    O = (exp(A) Q) S + P U
    S' = exp(A_c) S + (exp(A_c - A) K)^T U

The preparations differ: X solves (I + L) X = beta [V, exp(A) K] for a delta
rule, and is [V, 0] for linear attention.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

Dot: TypeAlias = Callable[[Array, Array], Array]
"""A matrix product at the configured precision."""

BLOCK = 16
"""Rows of a block: of forward substitution, and of decays per channel."""
RESET = -1e36
"""Stands for a log decay of -inf: exp gives the same zero, and 0 * it is not
NaN; a chunk of them sums to a finite number."""


class Prepared(NamedTuple):
  """A chunk's quantities that do not depend on the state, heads first.

  Attributes:
    x_v: Solved values. [hv c v]
    x_k: Solved keys, or None where nothing is subtracted. [hv c k]
    q_in: exp(A) Q. [hv c k]
    scores: P, lower triangular. [hv c c]
    k_out: exp(A_c - A) K. [hv c k]
    decay: exp(A_c), per head or per channel. [hv 1 1] or [hv k 1]
  """

  x_v: Float32[Array, "hv c v"]
  x_k: Float32[Array, "hv c k"] | None
  q_in: Float32[Array, "hv c k"]
  scores: Float32[Array, "hv c c"]
  k_out: Float32[Array, "hv c k"]
  decay: Float32[Array, "hv _ 1"]


def advance(
  state: Float32[Array, "hv k v"], x: Prepared, dot: Dot
) -> tuple[Float32[Array, "hv k v"], Float32[Array, "c hv v"]]:
  """Computes the state after the chunk, and the outputs, as said above."""
  u = x.x_v if x.x_k is None else x.x_v - dot(x.x_k, state)
  out = dot(x.q_in, state) + dot(x.scores, u)
  state = state * x.decay + dot(x.k_out.swapaxes(1, 2), u)
  return state, out.swapaxes(0, 1)


def step(
  state: Float32[Array, "b hv k v"],
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv _"],
  beta: Float32[Array, "b hv"] | None = None,
) -> tuple[Float32[Array, "b hv k v"], Float32[Array, "b hv v"]]:
  """Advances b requests by one token, by the recurrence as it is written.

  S = exp(a) S;  u = beta (v - S^T k), or v;  S = S + k u^T;  o = S^T q. Sums
  over k, never a product of one row, whose bits would be its own.

  Args:
    state: The state S.
    q: The queries.
    k: The keys.
    v: The values.
    log_decay: a, per head or per channel: [b hv 1] or [b hv k].
    beta: Strength of a delta rule, or None where nothing is subtracted.
  """
  groups = v.shape[1] // k.shape[1]
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  if groups > 1:
    q, k = (jnp.repeat(x, groups, axis=1) for x in (q, k))
  state = state * jnp.exp(log_decay)[..., None]
  if beta is not None:
    v = beta[..., None] * (v - jnp.sum(state * k[..., None], axis=-2))
  state = state + k[..., None] * v[..., None, :]
  return state, jnp.sum(state * q[..., None], axis=-2)


def dot_at(precision: lax.Precision) -> Dot:
  """Makes the matrix product at a precision, accumulated in float32."""

  def dot(x: Array, y: Array) -> Array:
    return jnp.matmul(
      x, y, precision=precision, preferred_element_type=jnp.float32
    )

  return dot


def heads_first(
  x: Float[Array, "c h *width"], real: Bool[Array, "c"]
) -> Float32[Array, "h c *width"]:
  """Turns [c h ...] into [h c ...] in float32, with zeros at padding."""
  real = real.reshape(-1, *(1,) * (x.ndim - 1))
  return jnp.where(real, x.astype(jnp.float32), 0.0).swapaxes(0, 1)


def repeat_heads(
  x: Float[Array, "h *rest"], value_heads: int
) -> Float[Array, "hv *rest"]:
  """Repeats each key head for all value heads of its group."""
  groups = value_heads // x.shape[0]
  return jnp.repeat(x, groups, axis=0) if groups > 1 else x


def settle_resets(log_decay: Float32[Array, "*shape"]) -> Array:
  """Replaces -inf by RESET: it decays to zero too, and is safe in sums.

  And what is below RESET, whose sums are -inf.
  """
  return jnp.where(log_decay < RESET, RESET, log_decay)


def head_decays(
  log_decay: Float32[Array, "hv c"], dot: Dot
) -> tuple[Float32[Array, "hv c c"], Float32[Array, "hv c"]]:
  """Computes exp(A_i - A_j) for i >= j (0 above), and exp(A_i).

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


def strictly_lower(x: Float32[Array, "hv c c"]) -> Float32[Array, "hv c c"]:
  """Keeps what is below the diagonal; selects the rest to zero."""
  below = jnp.tril(jnp.ones((1, *x.shape[1:]), bool), -1)
  return jnp.where(below, x, 0.0)


def solve_delta_rule(
  key_key: Float32[Array, "hv c c"],
  k: Float32[Array, "hv c k"],
  v: Float32[Array, "hv c v"],
  beta: Float32[Array, "hv c"],
  decay_in: Float32[Array, "hv c _"],
  dot: Dot,
) -> tuple[Float32[Array, "hv c v"], Float32[Array, "hv c k"]]:
  """Solves (I + L) X = beta [V, exp(A) K] for X_v and X_k.

  Args:
    key_key: Products of keys and their decays; L is beta times what stands
      below the diagonal.
    k: The keys K.
    v: The values V.
    beta: The strength of each token.
    decay_in: exp(A), per head or per channel: [hv c 1] or [hv c k].
    dot: Matrix product at the configured precision.
  """
  scale = beta[:, :, None]
  lower = strictly_lower(key_key * scale)
  right = jnp.concatenate([v * scale, k * (scale * decay_in)], axis=-1)
  solved = solve_unit_lower(lower, right, dot)
  x_v, x_k = jnp.split(solved, [v.shape[-1]], axis=-1)
  return x_v, x_k


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
  block = min(BLOCK, size)
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
