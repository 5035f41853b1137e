"""Inverses of 16 x 16 blocks, within a warp.

Where the result of a product of a warpgroup lies in registers, warp w holds
rows 16 w to 16 w + 15, so all of the w-th diagonal block. With the row j of the
inverse of I + L known, what it adds to the rows below is known,

    T_i -= L_ij T_j, i > j,

and a warp passes L_ij and T_j around by shuffles: fifteen steps in float32, all
four blocks at once, without shared memory and with nobody to wait for.

Pallas has no shuffles: the steps are written in Mosaic's own language.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.implementations import Config
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, indices

BLOCK_ROWS = 16
"""Rows of a block: what a warp holds of a tile."""


def invert_blocks(
  lower: Float32[Array, "c c"], config: Config
) -> Float32[Array, "c c//2"]:
  """Inverts the diagonal blocks of I + lower.

  Args:
    lower: Strictly lower triangular, in registers like the result of a product.
    config: Its `interpret` says whether the interpreter runs the kernel. It has
      no warps, and takes the same steps on whole matrices.

  Returns:
    The inverses, as a matrix of zeros elsewhere would hold them, of which the
    first half of the rows has the left half, and the other one the right half.
  """
  if config.interpret is not None:
    return _on_matrices(lower)
  layout = plgpu.Layout.WGMMA
  shape = plgpu.ShapeDtypeStruct(
    (CHUNK, CHUNK // 2), lower.dtype, layout=layout
  )
  inline: Any = plgpu.inline_mgpu(arg_types=(layout,), return_type=shape)
  return inline(_in_a_warp)(lower)


def _on_matrices(lower: Float32[Array, "c c"]) -> Float32[Array, "c c//2"]:
  """The steps of `_in_a_warp` with masks and sums in place of shuffles."""
  row, column = indices()
  same = row // BLOCK_ROWS == column // BLOCK_ROWS
  lower = jnp.where(same, lower, 0.0)
  inverse = jnp.where(row == column, 1.0, 0.0)
  for j in range(BLOCK_ROWS - 1):
    known = jnp.where(row % BLOCK_ROWS == j, inverse, 0.0)
    factor = jnp.where(column % BLOCK_ROWS == j, lower, 0.0)
    added = jnp.sum(factor, axis=1)[:, None] * jnp.sum(known, axis=0)[None]
    inverse = inverse - jnp.where(same, added, 0.0)
  half = CHUNK // 2
  left, right = inverse[:, :half], inverse[:, half:]
  return jnp.where(row[:, :half] < half, left, right)


def _constant(value: int) -> Any:
  return mosaic.c(value, ir.IntegerType.get_signless(32))


def _element(register: Any, index: int) -> Any:
  """One of the two numbers of a register."""
  position = ir.DenseI64ArrayAttr.get([index])
  return vector.extract(register, dynamic_position=[], static_position=position)


def _from_lane(x: Any, lane: Any) -> Any:
  """What another lane of the warp holds in x."""
  return llvm.inline_asm(
    ir.F32Type.get(),
    [x, lane],
    "shfl.sync.idx.b32 $0, $1, $2, 31, -1;",
    "=f,f,r",
    has_side_effects=True,
  )


def _is(x: Any, value: Any) -> Any:
  return arith.cmpi(arith.CmpIPredicate.eq, x, value)


def _in_a_warp(context: Any, lower: Any) -> Any:
  """`invert_blocks` in registers.

  Lane l holds, of rows l / 4 and l / 4 + 8 of its block (halves h), columns
  2 (l % 4) and the next of each 8 (groups g): four registers of two numbers.

  Args:
    context: Of the launch.
    lower: The matrix, as Mosaic holds it: its registers by groups and halves.
  """
  del context
  thread = mosaic.utils.thread_idx()
  lane = arith.andi(thread, _constant(31))
  warp = mosaic.utils.warp_idx()
  row_lanes, column_lane = (arith.andi(lane, _constant(x)) for x in (28, 3))
  held = lower.registers.reshape(CHUNK // 8, 2)
  halves = [(g, h) for g in range(2) for h in range(2)]
  own = {place: _own(held, place, warp) for place in halves}
  inverse = _identity(arith.shrui(lane, _constant(2)), column_lane)
  for j in range(BLOCK_ROWS - 1):
    half, place = divmod(j, 8)
    of_column = arith.ori(row_lanes, _constant(place // 2))
    of_row = arith.ori(column_lane, _constant(4 * place))
    known = {
      (g, e): _from_lane(inverse[g, half, e], of_row)
      for g in range(half + 1)
      for e in range(2)
    }
    for h in range((j + 1) // 8, 2):
      factor = _element(own[half, h], place % 2)
      factor = _from_lane(factor, of_column)
      for (g, e), x in known.items():
        added = arith.mulf(factor, x)
        inverse[g, h, e] = arith.subf(inverse[g, h, e], added)
  return _placed(lower, inverse, warp)


def _own(held: Any, place: tuple[int, int], warp: Any) -> Any:
  """The register of this warp's diagonal block at a group and half."""
  group, half = place

  def choose(chosen: Any, w: int) -> Any:
    found = held[2 * w + group, half]
    return arith.select(_is(warp, _constant(w)), found, chosen)

  return functools.reduce(choose, range(1, 4), held[group, half])


def _identity(row: Any, column_lane: Any) -> dict[tuple[int, int, int], Any]:
  """The numbers of an identity matrix, by group, half and place."""
  zero, one = (mosaic.c(float(x), ir.F32Type.get()) for x in range(2))
  first = arith.shli(column_lane, _constant(1))
  found = {}
  for e in range(2):
    column = arith.addi(first, _constant(e))
    diagonal = arith.select(_is(row, column), one, zero)
    for g in range(2):
      for h in range(2):
        found[g, h, e] = diagonal if g == h else zero
  return found


def _placed(lower: Any, inverse: Any, warp: Any) -> Any:
  """The inverse of each warp in its half of the columns, and zeros."""
  zero = mosaic.c(0.0, ir.F32Type.get())
  odd = arith.andi(warp, _constant(1))
  registers = lower.registers[:, : CHUNK // 16].copy()
  places = registers.reshape(CHUNK // 16, 2)  # it shares what it holds
  for group in range(CHUNK // 16):
    mine = _is(odd, _constant(group // 2))
    for half in range(2):
      pair = [
        arith.select(mine, inverse[group % 2, half, e], zero) for e in range(2)
      ]
      kind = places[group, half].type
      places[group, half] = vector.from_elements(kind, pair)
  return mosaic.FragmentedArray(
    _registers=registers, _layout=lower.layout, _is_signed=None
  )
