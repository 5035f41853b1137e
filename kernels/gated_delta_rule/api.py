"""gated_delta_rule: what layers call, whatever computes it."""

from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import (
  Chunks,
  capture_rows,
  restore_rows,
)
from sparse_prefix_jax.kernels.gated_delta_rule import xla
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain

_PRECISION = lax.Precision.HIGHEST
_IMPLEMENTATIONS = (plain(xla.packed),)


def gated_delta_rule(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """S_t = exp(a_t) S_{t-1} + k_t u_t^T, u_t = beta_t (v_t - k_t exp(a_t) S).

  Restores each request from its slot, scans its chunks and captures the state
  after any subset of them, in one pass.

  Args:
    q: Queries, scaled by the caller.
    k: Keys.
    v: Values; hv is a multiple of h.
    log_decay: Log decay a_t <= 0; -inf resets the state.
    beta: Strength of the update, 0 to 1.
    pool: States, donated: captured states appear in the result.
    chunks: What each packed chunk reads, writes and holds.
    precision: Of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and pool. Rows past a chunk's length are unspecified (and finite).

  Raises:
    ValueError: If no implementation fits, with the reason of each.
  """
  arguments = q, k, v, log_decay, beta, pool, chunks
  return dispatch(
    "gated_delta_rule",
    implementation,
    _IMPLEMENTATIONS,
    *arguments,
    precision=precision,
  )


def gated_delta_chunk(
  state: Float32[Array, "hv k v"],
  x: tuple[Array, Array, Array, Array, Array],
  length: Int32[Array, ""],
  *,
  precision: lax.Precision = _PRECISION,
) -> tuple[Float32[Array, "hv k v"], Float32[Array, "c hv v"]]:
  """One chunk, carry first, without a pool: the differentiable core.

  Args:
    state: The state before the chunk.
    x: (q, k, v, log_decay, beta) of the chunk, shapes as in
      `gated_delta_rule` without n.
    length: Real tokens of the chunk.
    precision: Of the products.

  Returns:
    The state after the chunk's real tokens, and the outputs.
  """
  return xla.chunk(state, *x, length, precision)


def gated_delta_rule_step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv"],
  beta: Float32[Array, "b hv"],
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """One token of b running sequences: slot `read` -> token -> slot `write`."""
  state = restore_rows(pool, read)
  state, q, k, v, log_decay, beta = lax.optimization_barrier(
    (state, q, k, v, log_decay, beta)
  )
  state, out = lax.optimization_barrier(
    xla.step(state, q, k, v, log_decay, beta)
  )
  return out, capture_rows(pool, write, state)
