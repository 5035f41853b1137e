"""causal_conv1d as a Mosaic TPU kernel: the cell of one chunk.

The inputs are rotated down by one row per tap, and the rows that come out of
the top are selected from the carried window:

    y_t = sum_i weight_i x_{t-w+1+i},   x_{-j} from the window

All of it is float32, which holds every bfloat16, so the window that is carried
on has the bits of the inputs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.kernels.mosaic_tpu.scan import (
  Config,
  Operand,
  Ref,
  packed_scan,
)


def _run(
  x: Float[Array, "n c d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  chunks: Chunks,
  *,
  config: Config,
) -> tuple[Float32[Array, "n c d"], Float[Array, "s w-1 d"]]:
  """Runs the operation as one kernel, called as `causal_conv1d` is.

  A slot is a few rows. Where XLA keeps them together the kernel copies them
  from and to the pool; elsewhere it works on the n slots of the call.
  """
  return packed_scan(
    _cell,
    [Operand(x, 2), Operand(weight, 1, chunked=False)],
    Operand(jax.ShapeDtypeStruct(x.shape, jnp.float32), 2),
    Operand(pool, 2),
    chunks,
    blocks=x.shape[2] // config.block,
    config=config,
    name="causal_conv1d",
    in_place=fit.rows_lie_together(pool.shape[1], pool.dtype),
  )


def _cell(carry: Ref, xs: Sequence[Ref], y: Ref, length: Array) -> None:
  """Takes one chunk and keeps rows [length, length+w-1) of (window, x).

  Args:
    carry: The last inputs before the chunk [1 w-1 d]; updated. Rows are
      selected and moved, never multiplied: -0.0 stays what it is.
    xs: x [c d] and weight [w d].
    y: Outputs [c d], float32; those of padding mean nothing.
    length: How many tokens are real.
  """
  x, weight = (ref[...].astype(jnp.float32) for ref in xs)
  window, size = weight.shape[0] - 1, x.shape[0]
  past = carry[0].astype(jnp.float32)
  row = algebra.iota(x.shape, 0)
  out = jnp.zeros(x.shape, jnp.float32)
  for tap in range(window + 1):
    shift = window - tap
    shifted = pltpu.roll(x, shift, 0) if shift else x
    for t in range(shift):
      shifted = jnp.where(row == t, past[tap + t : tap + t + 1], shifted)
    out = out + shifted * weight[tap : tap + 1]
  y[...] = out
  # Row r of the new window is row length + r - window of x, or older.
  latest = pltpu.roll(x, (window - length) % size, 0)[:window]
  source = algebra.iota(latest.shape, 0) + length
  for t in range(window):
    latest = jnp.where(source == t, past[t : t + 1], latest)
  carry[0] = latest.astype(carry.dtype)


def _refusal(device: Device, config: Config, *arguments: Any) -> str | None:
  """Why the call does not fit a TPU, or None."""
  x, weight, pool, _ = arguments
  if weight.shape[0] - 1 > 8 or weight.shape[0] < 2:
    return f"a window of {weight.shape[0]} is not 2 to 9 inputs long"
  if pool.dtype != x.dtype:
    return f"the pool is {pool.dtype} and the inputs are {x.dtype}"
  return fit.refusal_of_channels(config, x, 1)


def _heuristic(device: Device, *arguments: Any) -> Config:
  """Chooses how many channels a grid step takes."""
  return Config(block=fit.channels_per_step(device, arguments[0], 1))


IMPLEMENTATION = Implementation(Config, _run, _refusal, _heuristic)
