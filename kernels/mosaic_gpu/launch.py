"""What all Mosaic GPU kernels share: the launch, buffers, bfloat16 products.

Kernels are written for one warpgroup (128 threads) per program and for the
*warpgroup* lowering, which infers the layouts of registers. It is asked for by
name: JAX 0.10 would take the other one, JAX 0.11 takes this one, and so one
source serves both.

Three rules of that lowering, found by trying, shape all kernels: a vector comes
from shared memory (a load from global memory wants 128 elements or more), one
loaded vector lies along the rows or along the columns of a tile and not along
both, and both operands of a product lie in shared memory, where a warpgroup
reads them and the interpreter follows it.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32, Int32

from sparse_prefix_jax.kernels.implementations import Config, current_device
from sparse_prefix_jax.kernels.mosaic_gpu.devices import gpu_of

Ref: TypeAlias = Any
"""A reference inside of a kernel; Pallas has no public type for it."""

CHUNK = 64
"""Tokens of a chunk: the rows of one warpgroup's product."""


@dataclasses.dataclass(frozen=True)
class MosaicGpuConfig(Config):
  """Sizes of a kernel; what they mean is said by each operation.

  Attributes:
    columns: Value columns, or channels, that one program takes.
    stages: Chunks that are loaded ahead of the one in work.
  """

  name: ClassVar[str] = "mosaic_gpu"
  platform: ClassVar[str | None] = "gpu"
  tunable: ClassVar[Mapping[str, Sequence[int]]] = types.MappingProxyType(
    {"columns": (16, 32, 64, 128, 256), "stages": (1, 2, 3, 4)}
  )
  columns: int = 64
  stages: int = 2


def launch(
  body: Callable[[Any, Any, Any], None],
  operands: Any,
  results: Sequence[Array | jax.ShapeDtypeStruct],
  scratch: Any,
  *,
  grid: Mapping[str, int],
  config: Config,
  name: str,
  apart: bool = False,
  approximate: bool = False,
) -> list[Array]:
  """Runs `body(operands, results, scratch)` once per point of `grid`.

  A result given as an array is updated in place: operand and result are one
  buffer, and what the kernel does not write keeps its bits. (References under
  `run_state` do that on JAX 0.10 and 0.11; `plgpu.kernel` makes new results
  only.)

  Args:
    body: The kernel. It gets three trees of references.
    operands: Tree of arrays that are only read.
    results: Arrays to update, or shapes of new arrays.
    scratch: Tree of shared memory and barriers, of each program its own.
    grid: Size by name; `lax.axis_index(name)` tells a program its place.
    config: Its `interpret` says whether the interpreter runs the kernel.
    name: What a profile calls it.
    apart: Whether no thread ever reads what another one wrote: without shared
      memory, on elements of its own. Nobody waits for anybody then; otherwise
      all threads wait for one another before and after every store.
    approximate: Whether exp is one instruction, which rounds its argument.

  Returns:
    The results.
  """
  fresh = [
    lax.empty(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
    for x in results
  ]
  mesh = plgpu.Mesh(
    grid=tuple(grid.values()), grid_names=tuple(grid), kernel_name=name
  )
  options: dict[str, Any] = {
    "compiler_params": plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
      # All warps have read before any writes: products of warps rely on it.
      unsafe_no_auto_barriers=apart,
      approx_math=approximate,
    )
  }
  if config.interpret is not None:
    options["interpret"] = config.interpret

  def on_references(refs: Any) -> None:
    def kernel() -> None:
      pl.run_scoped(functools.partial(body, *refs), scratch)

    if "core_map" in vars(pl):
      # JAX 0.10, whose `pl.kernel` copies every reference that it is given.
      pl.core_map(mesh, name=name, **options)(kernel)
    else:
      run: Any = pl.kernel(kernel, mesh=mesh, name=name, **options)
      run()

  return pl.run_state(on_references)((operands, fresh))[1]


def tile(*shape: int, dtype: Any = jnp.bfloat16, width: int = 64) -> Any:
  """Shared memory in the form that products and bulk copies want.

  It is cut into tiles of 8 rows and at most 128 bytes, swizzled so that neither
  a row nor a column of a tile meets one bank twice.

  Args:
    *shape: Shape of the buffer.
    dtype: Dtype of the elements.
    width: Columns of a tile at most. The operands of a product have the same;
      it is less than 64 where one of them has fewer columns.
  """
  size = jnp.dtype(dtype).itemsize
  width = min(width, shape[-1], 128 // size)
  return plgpu.SMEM(
    shape,
    dtype,
    transforms=(
      plgpu.TilingTransform((8, width)),
      plgpu.SwizzleTransform(width * size),
    ),
  )


def vector(*shape: int) -> Any:
  """Shared memory for vectors of float32, as they come."""
  return plgpu.SMEM(shape, jnp.float32)


def new(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
  """An array that `launch` is to make."""
  return jax.ShapeDtypeStruct(shape, dtype)


def load(copies: Sequence[tuple[Ref, Ref]], barrier: Ref) -> None:
  """Copies global to shared memory, all at once, and waits for the last.

  Args:
    copies: Pairs of references: what to copy, and where to.
    barrier: One that expects as many arrivals as there are copies.
  """
  for source, buffer in copies:
    plgpu.copy_gmem_to_smem(source, buffer, barrier)
  plgpu.barrier_wait(barrier)


def split(x: Float32[Array, "r c"], count: int) -> list[Array]:
  """Splits x into bfloat16 arrays whose sum it is: 8 bits of it each.

  A product of bfloat16 operands with float32 accumulation has 8 bits of each
  operand. An operand in two parts has 16, in three all 24.
  """
  found = []
  for _ in range(count):
    found.append(x.astype(jnp.bfloat16))
    x = x - found[-1].astype(jnp.float32)
  return found


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


def store_parts(buffer: Ref, x: Float32[Array, "r c"], count: int) -> None:
  """Writes the parts of x to buffer[part]; `plgpu.commit_smem` is to follow."""
  store_each(buffer, split(x, count))


def store_each(buffer: Ref, values: Sequence[Array]) -> None:
  """Writes to buffer[0], ...; `plgpu.commit_smem` is to follow."""
  for index, value in enumerate(values):
    buffer[index] = value


def dot(
  pairs: Sequence[tuple[Ref, Ref]], shape: tuple[int, int]
) -> Float32[Array, "r c"]:
  """Sums the products of pairs of bfloat16 buffers, in their order."""
  if not gpu_of(current_device()).warpgroup_products:
    return dot_by_warps(pairs, shape)

  def accumulate(accumulator: Ref) -> Array:
    for left, right in pairs:
      plgpu.wgmma(accumulator, left, right)
    # Nothing else ties what follows to the wait: registers are read behind it.
    return lax.optimization_barrier(accumulator[...])

  return pl.run_scoped(
    accumulate, plgpu.WGMMAAccumulatorRef(shape, jnp.float32)
  )


def dot_onto(
  total: Float32[Array, "r c"],
  pairs: Sequence[tuple[Ref, Ref]],
  config: Config,
) -> Float32[Array, "r c"]:
  """Adds the products of pairs of bfloat16 buffers to a sum, in its registers.

  A sum beside the product would take as many registers again. Where there are
  no products of a warpgroup, and in the interpreter, which cannot begin with a
  sum, it is added afterwards.
  """
  in_place = gpu_of(current_device()).warpgroup_products
  if not in_place or config.interpret is not None:
    return total + dot(pairs, (total.shape[0], total.shape[1]))

  def accumulate(accumulator: Ref) -> None:
    for left, right in pairs:
      plgpu.wgmma(accumulator, left, right)

  begun = plgpu.WGMMAAccumulatorRef.init(total)
  return lax.optimization_barrier(pl.run_state(accumulate)(begun))


def dot_by_warps(
  pairs: Sequence[tuple[Any, Ref]], shape: tuple[int, int]
) -> Float32[Array, "r c"]:
  """`dot` from registers, where a warp holds all of the right operand.

  That is why it goes by blocks of the axis that is summed over. The result lies
  in registers as that of a warpgroup's product does. A buffer may be written
  anew at once: `launch` has barriers around every write and load.

  Args:
    pairs: Operands; the left ones may be arrays.
    shape: Of the sum.
  """
  instructions: Any = plgpu  # JAX 0.10 has no mma, and is refused before
  total = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)
  for left, right in pairs:
    if isinstance(left, jax.Array):
      left = _from_a_buffer(left)
    for start in range(0, left.shape[1], CHUNK):
      inner = slice(start, min(start + CHUNK, left.shape[1]))
      total = instructions.mma(total, left[:, inner], right[inner, :])
  return total


def _from_a_buffer(x: Array) -> Array:
  """The same array, in registers that a buffer was read into.

  Those of a sum are in another order than a left operand of a warp wants them.
  """

  def through(buffer: Ref) -> Array:
    buffer[...] = x
    return buffer[...]

  return pl.run_scoped(through, plgpu.SMEM(x.shape, x.dtype))


def parts(buffer: Ref) -> list[Ref]:
  """The two parts of an operand. [part r c]"""
  return [buffer.at[0], buffer.at[1]]


def stacked(buffer: Ref) -> list[Ref]:
  """The two parts of an operand, one below the other. [part*c r]"""
  return [buffer.at[pl.ds(0, CHUNK)], buffer.at[pl.ds(CHUNK, CHUNK)]]


def dot_parts(
  left: Sequence[Ref], right: Sequence[Ref], columns: int
) -> Float32[Array, "c v"]:
  """Multiplies operands in two parts, but for the smallest term.

  Args:
    left: Parts [c c].
    right: Parts [c v].
    columns: The number of columns v.
  """
  pairs = ((0, 0), (0, 1), (1, 0))
  return dot([(left[i], right[j]) for i, j in pairs], (CHUNK, columns))


def indices() -> tuple[Int32[Array, "c c"], Int32[Array, "c c"]]:
  """Row and column number of each element of a [c c] tile."""
  shape = (CHUNK, CHUNK)
  return (
    lax.broadcasted_iota(jnp.int32, shape, 0),
    lax.broadcasted_iota(jnp.int32, shape, 1),
  )


def as_accumulator(x: Float32[Array, "r c"], config: Config) -> Array:
  """Places x in registers like the result of a product.

  Where a kernel has no products, the lowering has nothing else to tell it how
  rows and columns lie. The interpreter has no registers, and no such operation.
  """
  if config.interpret is not None:
    return x
  return plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def along_rows(x: Float32[Array, "r"], columns: int) -> Float32[Array, "r c"]:
  """Puts element i of x in all of row i."""
  return lax.broadcast_in_dim(x, (x.shape[0], columns), (0,))


def along_columns(x: Float32[Array, "c"], rows: int) -> Float32[Array, "r c"]:
  """Puts element j of x in all of column j."""
  return lax.broadcast_in_dim(x, (rows, x.shape[0]), (1,))


def choose(condition: Array, if_true: Array, if_false: Array) -> Array:
  """`where` for one condition and whole tiles."""
  return jnp.where(
    lax.broadcast_in_dim(condition, if_true.shape, ()), if_true, if_false
  )
