"""diagonal_scan in plain XLA operations: token by token within a chunk."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import chunk_algebra as algebra
from sparse_prefix_jax.kernels.chunks import Chunks, packed_scan, step_rows


def packed(
  x: Float[Array, "n c d"],
  log_decay: Float32[Array, "n c d"],
  pool: Float32[Array, "s d *e"],
  chunks: Chunks,
  *,
  rate: Float32[Array, "d e"] | None,
  b: Float[Array, "n c e"] | None,
  c: Float[Array, "n c e"] | None,
) -> tuple[Float32[Array, "n c d"], Float32[Array, "s d *e"]]:
  """Scans over the chunks; it is called as `diagonal_scan` is."""

  def cell(state: Array, x: Any, length: Array) -> tuple[Array, Array]:
    return chunk(rate, state, x, length)

  return packed_scan(cell, pool, (x, log_decay, b, c), chunks)


def chunk(
  rate: Float32[Array, "d e"] | None,
  state: Float32[Array, "d *e"],
  inputs: tuple[Array, Array, Array | None, Array | None],
  length: Array,
) -> tuple[Float32[Array, "d *e"], Float32[Array, "c d"]]:
  """Advances one state over one chunk of which `length` tokens are real.

  Args:
    rate: Factors of the log decay in Mamba's form, or None.
    state: The state before the chunk.
    inputs: x, log_decay, b and c of the chunk; [c d] and [c e].
    length: Real tokens; behind them the state stays as it is.

  Returns:
    The state after the real tokens, and y; rows of padding hold zeros.
  """

  def token(state: Array, step: tuple[Any, Array]) -> tuple[Array, Array]:
    inputs, real = step
    advanced, y = _advance(state, rate, *inputs)
    return jnp.where(real, advanced, state), jnp.where(real, y, 0.0)

  # Padding may hold anything: zero is what neither exp nor a gradient minds.
  real = jnp.arange(inputs[0].shape[0], dtype=jnp.int32) < length
  settled = tuple(
    None if x is None else jnp.where(real[:, None], x.astype(jnp.float32), 0.0)
    for x in inputs
  )
  return lax.scan(token, state, (settled, real))


def step(
  x: Float[Array, "b d"],
  log_decay: Float32[Array, "b d"],
  pool: Float32[Array, "s d *e"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  rate: Float32[Array, "d e"] | None,
  b: Float[Array, "b e"] | None,
  c: Float[Array, "b e"] | None,
) -> tuple[Float32[Array, "b d"], Float32[Array, "s d *e"]]:
  """Takes one token of b rows; called as `diagonal_scan_step`."""
  token = functools.partial(_token, rate)
  return step_rows(token, pool, (x, log_decay, b, c), read, write)


def _token(
  rate: Float32[Array, "d e"] | None,
  state: Float32[Array, "b d *e"],
  x: Float[Array, "b d"],
  log_decay: Float32[Array, "b d"],
  b: Float[Array, "b e"] | None,
  c: Float[Array, "b e"] | None,
) -> tuple[Float32[Array, "b d *e"], Float32[Array, "b d"]]:
  """Advances b requests by one token, by the recurrence as it is written."""
  b, c = (None if u is None else u.astype(jnp.float32) for u in (b, c))
  return _advance(state, rate, x.astype(jnp.float32), log_decay, b, c)


def _advance(
  state: Float32[Array, "*rows"],
  rate: Float32[Array, "d e"] | None,
  x: Float32[Array, "*tokens d"],
  log_decay: Float32[Array, "*tokens d"],
  b: Float32[Array, "*tokens e"] | None,
  c: Float32[Array, "*tokens e"] | None,
) -> tuple[Float32[Array, "*rows"], Float32[Array, "*tokens d"]]:
  """Advances every row by one token; rows are [d] or [d e], a token [d]."""
  log_decay = algebra.settle_resets(log_decay)
  if rate is None or b is None or c is None:
    state = jnp.exp(log_decay) * state + x
    return state, state
  expand = (1,) * (x.ndim - 1)
  decay = jnp.exp(log_decay[..., None] * rate.reshape(*expand, *rate.shape))
  state = decay * state + x[..., None] * b[..., None, :]
  return state, jnp.sum(state * c[..., None, :], axis=-1)
