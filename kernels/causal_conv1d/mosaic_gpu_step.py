"""causal_conv1d_step on GPU: a filtered window, which moves on by one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu import rows_step as rows
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  refused_device,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig


def step(
  x: Float[Array, "b d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  silu: bool,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "b d"], Float[Array, "s w-1 d"]]:
  """Takes one token of b rows in one launch; as `causal_conv1d_step`."""
  slots = read, write
  return rows.step(
    _filtered_silu if silu else _filtered,
    [x],
    weight,
    pool,
    slots,
    config,
    "causal_conv1d_step",
  )


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  x: Array,
  weight: Array,
  *_: Any,
  **__: Any,
) -> str | None:
  """Why the kernel does not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernel.
    x: Inputs. [b d]
    weight: Filter. [w d]
    *_: Further arguments, which do not matter here.
    **__: Further options, which do not matter here.
  """
  if weight.dtype not in (jnp.bfloat16, jnp.float32):
    return f"takes taps of bfloat16 and float32, and these are {weight.dtype}"
  refused = refused_device(device, config, products=False)
  return refused or rows.unfit(x, config)


def heuristic(device: Device, x: Array, *_: Any, **__: Any) -> MosaicGpuConfig:
  """Chooses the channels of a program."""
  del device
  return rows.sizes(x)


STEP = Implementation(
  config=MosaicGpuConfig,
  run=step,
  refusal=within_grid(refusal),
  heuristic=heuristic,
)


def _filtered(
  window: rows.Vectors, inputs: rows.Vectors, weight: rows.Vectors
) -> tuple[rows.Vectors, Float32[Array, "d"]]:
  """Takes one token: the products of the window and the taps, in their order.

  Args:
    window: The last w-1 inputs, oldest first.
    inputs: The next one.
    weight: The taps of the filter, oldest first.
  """
  window = (*window, *inputs)
  y = jnp.zeros(window[0].shape, jnp.float32)
  for value, tap in zip(window, weight, strict=True):
    y = y + value.astype(jnp.float32) * tap.astype(jnp.float32)
  return window[1:], y


def _filtered_silu(
  window: rows.Vectors, inputs: rows.Vectors, weight: rows.Vectors
) -> tuple[rows.Vectors, Float32[Array, "d"]]:
  """The same, and silu of what is filtered."""
  window, y = _filtered(window, inputs, weight)
  return window, jax.nn.silu(y)
