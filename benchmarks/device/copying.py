"""What a device can copy: the bound of whatever computes little."""

import functools
import time

import jax
import jax.numpy as jnp


@functools.cache
def bandwidth() -> float:
  """Bytes per second of a copy on this device."""
  x = jnp.ones(1 << 28 if jax.default_backend() == "gpu" else 1 << 24)
  copy = jax.jit(lambda x: x + 1)
  times = []
  for _ in range(6):
    start = time.perf_counter()
    jax.block_until_ready([copy(x) for _ in range(4)])
    times.append((time.perf_counter() - start) / 4)
  return 2 * x.nbytes / min(times)
