"""causal_conv1d on GPU: the window of inputs is the carry of a scan.

The window holds raw inputs, so a captured state has the bits of the inputs that
it is made of: rows [length, length + w - 1) of (old state, chunk). Outputs are
sums in the order of the taps, in float32.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu import rows as rows
from sparse_prefix_jax.kernels.mosaic_gpu.devices import refused_device
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig,
)


def packed(
  x: Float[Array, "n c d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  chunks: Chunks,
  *,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "n c d"], Float[Array, "s w-1 d"]]:
  """Runs the operation in one launch; takes the arguments of `causal_conv1d`.

  Returns:
    y, zero past a chunk's length, and the pool.
  """
  weight = weight.astype(jnp.float32)
  return rows.scan(_cell, [x], weight, pool, chunks, config, "causal_conv1d")


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  x: Array,
  weight: Array,
  pool: Array,
  *_: Any,
) -> str | None:
  """Why the kernel does not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernel.
    x: Inputs. [n c d]
    weight: Filter. [w d]
    pool: Windows. [s w-1 d]
    *_: Further arguments, which do not matter here.
  """
  if pool.dtype != x.dtype:
    return f"takes a pool of {x.dtype}, the dtype of x, not {pool.dtype}"
  if weight.shape[0] < 2:
    return "takes two taps or more: with one there is nothing to carry"
  reason = rows.unfit(x, config, x.dtype.itemsize)
  return refused_device(device, config, products=False) or reason


def heuristic(device: Device, x: Array, *_: Any) -> MosaicGpuConfig:
  """Chooses sizes for rows of which one array is loaded."""
  return rows.sizes(x, x.dtype.itemsize)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig, run=packed, refusal=refusal, heuristic=heuristic
)


def _cell(
  window: rows.Carry, x: Array, weight: rows.Carry
) -> tuple[rows.Carry, Float32[Array, "d"]]:
  """Takes one token: y is the filtered window, which moves on by one.

  Args:
    window: The last w-1 inputs, oldest first.
    x: The next input.
    weight: The taps of the filter, oldest first.
  """
  window = (*window, x)
  y = jnp.zeros(x.shape, jnp.float32)
  for value, tap in zip(window, weight, strict=True):
    y = y + value.astype(jnp.float32) * tap
  return window[1:], y
