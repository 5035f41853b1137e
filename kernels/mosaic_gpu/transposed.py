"""Transposed operands and results of products, in Mosaic GPU kernels.

A product of a warpgroup reads its operands in either order, which the
interpreter does not follow: there transposed copies are made first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.implementations import Config
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, Ref, dot

_MOST_UNROLLED = 256
"""Terms of a sum whose addresses may all be made in front of a loop."""


def dot_transposed(
  left: Ref, right: Ref, turn: Array, config: Config
) -> Float32[Array, "r s"]:
  """Multiplies a buffer [r k] by the transpose of another [s k].

  Args:
    left: Shared memory. [r k]
    right: Shared memory. [s k]
    turn: The number, from 0, of the turn of the caller's loop. Addresses of
      many terms depend on it: made once in front, they would be spilled.
    config: Says whether the interpreter runs the kernel.
  """
  shape, terms = (left.shape[0], right.shape[0]), left.shape[1]
  if terms <= _MOST_UNROLLED:
    return with_transposed(
      [right], lambda turned: dot([(left, turned)], shape), config
    )

  def accumulate(accumulator: Ref) -> Array:
    zero = lax.shift_right_logical(turn, 31) * CHUNK  # no compiler knows
    for start in range(0, terms, CHUNK):
      inner = pl.ds(pl.multiple_of(zero + start, CHUNK), CHUNK)
      add = functools.partial(plgpu.wgmma, accumulator, left.at[:, inner])
      with_transposed([right.at[:, inner]], add, config)
    return lax.optimization_barrier(accumulator[...])

  total = plgpu.WGMMAAccumulatorRef(shape, jnp.float32)
  return pl.run_scoped(accumulate, total)


def with_transposed(
  buffers: Sequence[Ref], use: Callable[..., Any], config: Config
) -> Any:
  """Calls `use` with the transposes of some buffers: operands of products.

  A product reads its operands in either order, which the interpreter does not
  follow: there transposed copies are made first.

  Args:
    buffers: Shared memory. [r k] each
    use: Takes one reference [k r] per buffer.
    config: Its `interpret` says whether the interpreter runs the kernel.

  Returns:
    What `use` returns.
  """
  if config.interpret is None:
    return use(*(buffer.transpose((1, 0)) for buffer in buffers))

  def copied(*copies: Ref) -> Any:
    for copy, buffer in zip(copies, buffers, strict=True):
      copy[...] = buffer[...].T
    return use(*copies)

  plain = (plgpu.SMEM(x.shape[::-1], x.dtype) for x in buffers)
  return pl.run_scoped(copied, *plain)


def store_transposed(
  buffer: Ref, x: Float[Array, "r k"], config: Config
) -> None:
  """Writes the transpose of x to a buffer; `plgpu.commit_smem` is to follow.

  Args:
    buffer: Shared memory. [k r]
    x: What lies in registers like the result of a product.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  if config.interpret is not None:
    buffer[...] = x.T
    return
  x = plgpu.layout_cast(x, plgpu.Layout.WGMMA_TRANSPOSED)
  buffer.transpose((1, 0))[...] = x
