"""What all Mosaic GPU kernels share: the launch, buffers, bfloat16 products.

Kernels are written for one warpgroup (128 threads) per program and for the
*warpgroup* lowering, which infers the layouts of registers. It is asked for by
name: JAX 0.10 would take the other one, JAX 0.11 takes this one, and so one
source serves both.

Three rules of that lowering, found by trying, shape all kernels: a vector comes
from shared memory (a load from global memory wants 128 elements or more), one
loaded vector lies along the rows or along the columns of a tile and not along
both, and a product takes both operands from shared memory, where the
interpreter follows it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float32, Int32

from sparse_prefix_jax.kernels.chunks import CARRY, ZERO, Chunks
from sparse_prefix_jax.kernels.implementations import Config, Device

Ref: TypeAlias = Any
"""A reference inside of a kernel; Pallas has no public type for it."""

CHUNK = 64
"""Tokens of a chunk: the rows of one warpgroup's product (wgmma)."""
SHARED_BYTES = 227 * 1024
"""Shared memory that one program of Hopper or Blackwell may take."""

READ, WRITE, LENGTH, LIVE, STOP = range(5)
"""Rows of `plan`."""


@dataclasses.dataclass(frozen=True)
class MosaicGpuConfig(Config):
  """Sizes of a kernel; what they mean is said by each operation.

  Attributes:
    columns: Value columns, or channels, that one program takes.
    stages: Chunks that are loaded ahead of the one in work.
  """

  name: ClassVar[str] = "mosaic_gpu"
  platform: ClassVar[str | None] = "gpu"
  columns: int = 64
  stages: int = 2


def too_old(device: Device, config: Config) -> str | None:
  """Why `device` cannot run these kernels, or None.

  Products and copies are those of Hopper (sm_90a). Kinds that are not known to
  be older are tried: Blackwell runs no wgmma and is refused as well.
  """
  if config.interpret is not None:
    return None
  if any(name in device.kind for name in ("H100", "H200", "H800", "GH200")):
    return None
  return f"is written for Hopper (sm_90a), and this is a {device.kind}"


def launch(
  body: Callable[[Any, Any, Any], None],
  operands: Any,
  results: Sequence[Array | jax.ShapeDtypeStruct],
  scratch: Any,
  *,
  grid: Mapping[str, int],
  config: Config,
  name: str,
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
    config: Says whether the interpreter runs it.
    name: What a profile calls it.

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
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    )
  }
  if config.interpret is not None:
    options["interpret"] = config.interpret

  def on_references(refs: Any) -> None:
    @pl.core_map(mesh, **options)
    def _() -> None:
      pl.run_scoped(lambda buffers: body(*refs, buffers), scratch)

  return pl.run_state(on_references)((operands, fresh))[1]


def tile(*shape: int, dtype: Any = jnp.bfloat16, width: int = 64) -> Any:
  """Shared memory in the form that products and bulk copies want.

  It is cut into tiles of 8 rows and at most 128 bytes, swizzled so that neither
  a row nor a column of a tile meets one bank twice.

  Args:
    *shape: Of the buffer.
    dtype: Of the elements.
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


def split(x: Float32[Array, "r c"], count: int) -> list[Array]:
  """bfloat16 arrays whose sum is x: 8 bits of it each.

  A product of bfloat16 operands with float32 accumulation has 8 bits of each
  operand. An operand in two parts has 16, in three all 24.
  """
  found = []
  for _ in range(count):
    found.append(x.astype(jnp.bfloat16))
    x = x - found[-1].astype(jnp.float32)
  return found


def store_parts(buffer: Ref, x: Float32[Array, "r c"], count: int) -> None:
  """Writes the parts of x to buffer[part]; `plgpu.commit_smem` is to follow."""
  for index, part in enumerate(split(x, count)):
    buffer[index] = part


def dot(
  pairs: Sequence[tuple[Ref, Ref]], shape: tuple[int, int]
) -> Float32[Array, "r c"]:
  """Sum of the products of pairs of bfloat16 buffers, in their order."""

  def accumulate(accumulator: Ref) -> Array:
    for left, right in pairs:
      plgpu.wgmma(accumulator, left, right)
    return accumulator[...]

  return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))


def dot_transposed(
  left: Ref, right: Ref, rows: int, config: Config
) -> Float32[Array, "r r"]:
  """Product of a buffer [r k] with the transpose of another [r k].

  The product reads its right operand in either order, which the interpreter of
  JAX 0.10 does not follow: there a transposed copy is made first.
  """
  if config.interpret is None:
    return dot([(left, plgpu.transpose_ref(right, (1, 0)))], (rows, rows))

  def copied(buffer: Ref) -> Array:
    buffer[...] = right[...].T
    return dot([(left, buffer)], (rows, rows))

  copy = tile(right.shape[1], rows)
  return pl.run_scoped(copied, copy)


def parts(buffer: Ref) -> list[Ref]:
  """The two parts of an operand. [part r c]"""
  return [buffer.at[0], buffer.at[1]]


def stacked(buffer: Ref) -> list[Ref]:
  """Likewise where they stand one below the other. [part*c r]"""
  return [buffer.at[pl.ds(0, CHUNK)], buffer.at[pl.ds(CHUNK, CHUNK)]]


def dot_parts(
  left: Sequence[Ref], right: Sequence[Ref], columns: int
) -> Float32[Array, "c v"]:
  """Product of operands in two parts, but for the smallest term.

  Args:
    left: Parts [c c].
    right: Parts [c v].
    columns: v.
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
  """Element i of x in all of row i."""
  return lax.broadcast_in_dim(x, (x.shape[0], columns), (0,))


def along_columns(x: Float32[Array, "c"], rows: int) -> Float32[Array, "r c"]:
  """Element j of x in all of column j."""
  return lax.broadcast_in_dim(x, (rows, x.shape[0]), (1,))


def choose(condition: Array, if_true: Array, if_false: Array) -> Array:
  """`where` for one condition and whole tiles."""
  return jnp.where(
    lax.broadcast_in_dim(condition, if_true.shape, ()), if_true, if_false
  )


def plan(chunks: Chunks) -> Int32[Array, "5 n"]:
  """What the programs of a scan ask about chunk j, as int32.

  A *segment* is a chunk that reads a slot or zero, and those after it that go
  on from their predecessor. Segments do not depend on one another (no slot is
  written by one request and read or written by another), so each is the work
  of programs of its own; those of chunks inside a segment have nothing to do.

  Returns:
    READ: Slot, ZERO or CARRY; never CARRY at the first chunk, whose carry is
      empty.
    WRITE: Slot or NONE.
    LENGTH: Real tokens.
    LIVE: End of the last chunk of j's segment that computes or captures.
    STOP: End of j's segment.
  """
  n = chunks.read.shape[0]
  index = jnp.arange(n, dtype=jnp.int32)
  read = jnp.where((index == 0) & (chunks.read == CARRY), ZERO, chunks.read)
  starts = read != CARRY
  # The next start after j, by a minimum over those that follow.
  following = jnp.where(
    starts[None, :] & (index[None] > index[:, None]), index[None], n
  )
  stop = jnp.min(following, axis=1)
  works = (chunks.length > 0) | (chunks.write >= 0)
  inside = works[None] & (index[None] < stop[:, None])
  live = jnp.max(jnp.where(inside, index[None] + 1, 0), axis=1)
  return jnp.stack([read, chunks.write, chunks.length, live, stop]).astype(
    jnp.int32
  )


def scan_segment(
  plan: Ref,
  arrived: Ref,
  stages: int,
  *,
  restore: Callable[[Array], Any],
  load: Callable[[Array, Array | int], None],
  step: Callable[[Array, Array, Any], Any],
  clear: Callable[[Array], None],
) -> None:
  """Scans the segment that begins at this program's chunk, if one does.

  The loads of a chunk begin `stages` chunks ahead, when the buffers of its
  stage are free again.

  Args:
    plan: See `plan`.
    arrived: One barrier per stage, which the loads of a chunk complete.
    stages: Number of chunks under way.
    restore: Slot or ZERO -> carry.
    load: Chunk, stage: starts the copies.
    step: Chunk, stage, carry -> carry: computes, emits and captures.
    clear: Chunk: emits zeros for an inactive one.
  """
  first = lax.axis_index("chunk")

  @pl.when(plan[READ, first] != CARRY)
  def _() -> None:
    live, stop = plan[LIVE, first], plan[STOP, first]
    carry = restore(plan[READ, first])
    for stage in range(stages):
      pl.when(first + stage < live)(
        functools.partial(load, first + stage, stage)
      )

    def advance(chunk: Array, carry: Any) -> Any:
      stage = lax.rem(chunk - first, stages)
      plgpu.barrier_wait(arrived.at[stage])
      carry = step(chunk, stage, carry)
      plgpu.commit_smem()  # all have read this stage, before it is overwritten
      after = chunk + stages
      pl.when(after < live)(functools.partial(load, after, stage))
      return carry

    lax.fori_loop(first, live, advance, carry)
    lax.fori_loop(lax.max(first, live), stop, lambda j, _: clear(j), None)


def real_rows(chunks: Chunks) -> Bool[Array, "n c"]:
  """Which rows of each chunk hold tokens."""
  return jnp.arange(CHUNK)[None] < chunks.length[:, None]
