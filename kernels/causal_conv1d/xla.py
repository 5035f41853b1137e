"""causal_conv1d in plain XLA operations: one shifted product per tap."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks, packed_scan, step_rows


def packed(
  x: Float[Array, "n c d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  chunks: Chunks,
) -> tuple[Float32[Array, "n c d"], Float[Array, "s w-1 d"]]:
  """Scans over the chunks; it is called as `causal_conv1d` is."""
  return packed_scan(functools.partial(chunk, weight), pool, x, chunks)


def chunk(
  weight: Float[Array, "w d"],
  state: Float[Array, "w-1 d"],
  x: Float[Array, "c d"],
  length: Int32[Array, ""],
) -> tuple[Float[Array, "w-1 d"], Float32[Array, "c d"]]:
  """Takes one chunk and keeps rows [length, length+w-1) of (state, x)."""
  window, tokens = weight.shape[0], x.shape[0]
  # Padding may hold anything, and would reach the gradient of the weight.
  real = jnp.arange(tokens, dtype=jnp.int32)[:, None] < length
  x = jnp.where(real, x, jnp.zeros_like(x))
  extended = jnp.concatenate([state, x], axis=0)
  extended32, weight = extended.astype(jnp.float32), weight.astype(jnp.float32)
  y = jnp.zeros((tokens, weight.shape[1]), jnp.float32)
  for i in range(window):
    y = y + extended32[i : i + tokens] * weight[i][None]
  return lax.dynamic_slice_in_dim(extended, length, window - 1), y


def step(
  x: Float[Array, "b d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  silu: bool,
) -> tuple[Float32[Array, "b d"], Float[Array, "s w-1 d"]]:
  """Takes one token of b rows; called as `causal_conv1d_step`."""
  cell = functools.partial(_token, weight)
  y, pool = step_rows(cell, pool, (x,), read, write)
  return (jax.nn.silu(y) if silu else y), pool


def _token(
  weight: Float[Array, "w d"],
  state: Float[Array, "b w-1 d"],
  x: Float[Array, "b d"],
) -> tuple[Float[Array, "b w-1 d"], Float32[Array, "b d"]]:
  """Advances b requests by one token; the new state drops the oldest input."""
  window = jnp.concatenate([state, x[:, None]], axis=1)
  window32, weight = window.astype(jnp.float32), weight.astype(jnp.float32)
  y = jnp.zeros(x.shape, jnp.float32)
  for i in range(weight.shape[0]):  # in the order of a chunk
    y = y + window32[:, i] * weight[i][None]
  return window[:, 1:], y
