"""Products whose left operands stay in registers, and operands in parts.

A result of a product lies in registers as a left operand does: it is split
there, and no store and no wait for other threads stand between two products.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.implementations import Config, current_device
from sparse_prefix_jax.kernels.mosaic_gpu.devices import gpu_of
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, Ref, dot


def cut_parts(x: Float32[Array, "r c"], count: int) -> list[Array]:
  """Splits x as `split` does, cutting digits off where that rounds.

  It takes fewer instructions, and the sum of two parts has 16 bits as well.
  """
  found = []
  for _ in range(count - 1):
    bits = lax.bitcast_convert_type(x, jnp.int32)
    high = lax.bitcast_convert_type(bits & -(2**16), jnp.float32)
    found.append(high.astype(jnp.bfloat16))
    x = x - high
  return [*found, x.astype(jnp.bfloat16)]


def store_each(buffer: Ref, values: Sequence[Array]) -> None:
  """Writes to buffer[0], ...; `plgpu.commit_smem` is to follow."""
  for index, value in enumerate(values):
    buffer[index] = value


def dots(
  sums: Sequence[Sequence[tuple[Any, Ref]]], config: Config
) -> list[Array]:
  """Several sums of products of bfloat16, under way together.

  Args:
    sums: Of each sum its pairs: the left operand a buffer or an array [64 k],
      in registers like the result of a product; the right one a buffer [k c].
      k is a multiple of the columns that tiles of the right one have.
    config: Its `interpret` says whether the interpreter runs the kernel. There
      a left operand is a buffer always: arrays are copied.

  Returns:
    The sums, each [64 c].
  """
  if config.interpret is not None:
    return [_dot_of_copies(pairs) for pairs in sums]
  if not gpu_of(current_device()).warpgroup_products:
    return [_dots_by_warps(pairs) for pairs in sums]

  def accumulate(*accumulators: Ref) -> list[Array]:
    for accumulator, pairs in zip(accumulators, sums, strict=True):
      for left, right in pairs:
        plgpu.wgmma(accumulator, left, right)
    # The first one waits for all; see `dot`.
    return [lax.optimization_barrier(x[...]) for x in accumulators]

  shapes = [_shape_of(pairs) for pairs in sums]
  return pl.run_scoped(
    accumulate, *(plgpu.WGMMAAccumulatorRef(x, jnp.float32) for x in shapes)
  )


def _shape_of(pairs: Sequence[tuple[Any, Ref]]) -> tuple[int, int]:
  left, right = pairs[0]
  return left.shape[0], right.shape[1]


def _dot_of_copies(pairs: Sequence[tuple[Any, Ref]]) -> Array:
  """`dot` for the interpreter, where arrays go through buffers."""

  def use(*copies: Ref) -> Array:
    for copy, (left, _) in zip(copies, pairs, strict=True):
      copy[...] = left[...]
    placed = [(x, right) for x, (_, right) in zip(copies, pairs, strict=True)]
    return dot(placed, _shape_of(pairs))

  return pl.run_scoped(use, *(plgpu.SMEM(x.shape, x.dtype) for x, _ in pairs))


def _dots_by_warps(pairs: Sequence[tuple[Any, Ref]]) -> Array:
  """`_dot_by_warps` whose left operands may be arrays."""
  instructions: Any = plgpu
  shape = _shape_of(pairs)
  total = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)
  for left, right in pairs:
    for start in range(0, left.shape[1], CHUNK):
      inner = slice(start, min(start + CHUNK, left.shape[1]))
      total = instructions.mma(total, left[:, inner], right[inner, :])
  return total
