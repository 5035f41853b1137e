"""Products whose left operand a warpgroup takes from registers.

The result of a product lies in registers just as the left operand of the next
one has to: what is made by one goes into the other without shared memory, or a
barrier.

`dots` waits for all of its products. Others run beside the program: `multiply`
begins them, and `finished` waits until no more than some of those begun later
are under way: so arithmetic on one result goes on while the next product runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float32

from sparse_prefix_jax.kernels.implementations import Config, current_device
from sparse_prefix_jax.kernels.mosaic_gpu.devices import gpu_of
from sparse_prefix_jax.kernels.mosaic_gpu.launch import Ref, dot, dot_by_warps

_Result = TypeVar("_Result")


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
    return [dot_by_warps(pairs, _shape_of(pairs)) for pairs in sums]

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


class Sum(NamedTuple):
  """A sum of products under way.

  Attributes:
    accumulator: Registers of a warpgroup's products.
    begun: What the sum began with and the accumulator has not, or None.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """

  accumulator: Ref
  begun: Array | None
  config: Config


def with_sums(
  body: Callable[..., _Result],
  shapes: Sequence[tuple[int, int]],
  config: Config,
) -> _Result:
  """Calls `body` with sums that begin with zero, and returns what it returns.

  Args:
    body: Takes a `Sum` per shape, all of which it has to await.
    shapes: The shape of each sum.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """

  def scoped(*accumulators: Ref) -> _Result:
    return body(*(Sum(x, None, config) for x in accumulators))

  allocated = (plgpu.WGMMAAccumulatorRef(x, jnp.float32) for x in shapes)
  return pl.run_scoped(scoped, *allocated)


def begun_with(total: Sum, start: Float32[Array, "r c"]) -> Sum:
  """Lets a sum begin with another in its registers, in place of zero.

  A sum beside the products would take as many registers again. The interpreter
  cannot begin with a sum, which is added afterwards.

  Args:
    total: A sum that no product has been added to.
    start: What it is to begin with.
  """
  if total.config.interpret is not None:
    return total._replace(begun=start)
  total.accumulator[...] = start
  return total


def multiply(
  total: Sum, pairs: Sequence[tuple[BFloat16[Array, "r k"], Ref]]
) -> int:
  """Begins to add products to a sum.

  Args:
    total: What is added to. [r c]
    pairs: Left operands, and transposed right operands in shared memory:
      [r k] and [c k] each.

  Returns:
    How many products have begun, for `finished`.
  """
  for left, right in pairs:
    if total.config.interpret is None:
      plgpu.wgmma(total.accumulator, left, right.transpose((1, 0)))
    else:
      _interpreted(total.accumulator, left, right)
  return len(pairs)


def _interpreted(
  accumulator: Ref, left: BFloat16[Array, "r k"], right: Ref
) -> None:
  """A product as the interpreter has it: both operands in shared memory."""

  def copied(rows: Ref, columns: Ref) -> None:
    rows[...], columns[...] = left, right[...].T
    plgpu.wgmma(accumulator, rows, columns)

  shapes = left.shape, right.shape[::-1]
  pl.run_scoped(copied, *(plgpu.SMEM(x, left.dtype) for x in shapes))


def finished(total: Sum, later: int = 0) -> Float32[Array, "r c"]:
  """Waits for a sum, and returns it.

  Args:
    total: The sum.
    later: How many products have begun after those of this sum.
  """
  found = plgpu.wgmma_accumulator_load(total.accumulator, wait_n=later)
  # Nothing else ties what follows to the wait: registers are read behind it.
  found = lax.optimization_barrier(found)
  return found if total.begun is None else total.begun + found


def load_transposed(buffer: Ref, config: Config) -> Array:
  """Loads the transpose of a buffer, to lie like the result of a product.

  Args:
    buffer: Shared memory. [r c]
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  if config.interpret is not None:
    return buffer[...].T
  x = buffer.transpose((1, 0))[...]
  x = plgpu.layout_cast(x, plgpu.Layout.WGMMA_TRANSPOSED)
  return plgpu.layout_cast(x, plgpu.Layout.WGMMA)
