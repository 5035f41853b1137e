"""causal_conv1d: a depthwise convolution whose window outlives a chunk."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import implementations
from sparse_prefix_jax.kernels.chunks import (
  Chunks,
  capture_rows,
  packed_scan,
  restore_rows,
)


def causal_conv1d(
  x: Float[Array, "n c d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  chunks: Chunks,
  *,
  implementation: str | None = None,
) -> tuple[Float32[Array, "n c d"], Float[Array, "s w-1 d"]]:
  """y_t = sum_i weight_i x_{t-w+1+i}, the past before a chunk from its slot.

  Args:
    x: Inputs of n packed chunks.
    weight: Depthwise filter, oldest tap first.
    pool: The last w-1 inputs per slot, in the dtype of x; donated.
    chunks: What each packed chunk reads, writes and holds.
    implementation: A name, or None for the best that fits.

  Returns:
    y in float32 and the pool. Rows past a chunk's length are unspecified.

  Raises:
    ValueError: If no implementation fits, with the reason of each.
  """
  implementations.choose("causal_conv1d", implementation)
  cell = functools.partial(causal_conv1d_chunk, weight)
  return packed_scan(cell, pool, x, chunks)


def causal_conv1d_chunk(
  weight: Float[Array, "w d"],
  state: Float[Array, "w-1 d"],
  x: Float[Array, "c d"],
  length: Int32[Array, ""],
) -> tuple[Float[Array, "w-1 d"], Float32[Array, "c d"]]:
  """One chunk; the new state is rows [length, length+w-1) of (state, x)."""
  window, tokens = weight.shape[0], x.shape[0]
  extended = jnp.concatenate([state, x], axis=0)
  extended32, weight = extended.astype(jnp.float32), weight.astype(jnp.float32)
  y = jnp.zeros((tokens, weight.shape[1]), jnp.float32)
  for i in range(window):
    y = y + extended32[i : i + tokens] * weight[i][None]
  return lax.dynamic_slice_in_dim(extended, length, window - 1), y


def causal_conv1d_step(
  x: Float[Array, "b d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
) -> tuple[Float32[Array, "b d"], Float[Array, "s w-1 d"]]:
  """One token of b running sequences: slot `read` -> token -> slot `write`."""
  state = restore_rows(pool, read)
  state, x = lax.optimization_barrier((state, x))
  window = jnp.concatenate([state, x[:, None]], axis=1)
  y = jnp.sum(
    window.astype(jnp.float32) * weight.astype(jnp.float32)[None], axis=1
  )
  window, y = lax.optimization_barrier((window, y))
  return y, capture_rows(pool, write, window[:, 1:])
