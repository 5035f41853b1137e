"""What fits a TPU: tiles, blocks of heads and of channels, layouts of pools.

A register holds 8 rows of 128 lanes of 32 bits. A block of an array in VMEM has
whole registers along its last two axes, or all of these axes. `refusal_of_*`
say why arguments do not fit, in the words of the error that a caller sees, or
give None; the sizes that they ask for are those that were compiled and tested.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sparse_prefix_jax.kernels.implementations import Device
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config

LANES = 128
"""Numbers in a row of a register."""


_TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")
"""Kinds of devices that share the blocks of a grid out among two cores."""

_VMEM_BYTES = 14 * 2**20
"""What the buffers of a step may take: 16 MiB, but for what is not counted."""
SCALAR_BYTES = 2**20 - 2**14
"""Bytes of scalars that a kernel may be given: those of SMEM, but for what the
compiler keeps there."""
_WHOLE_VMEM = {
  "TPU v4": 16 * 2**20,
  "TPU v5": 64 * 2**20,
  "TPU v5p": 64 * 2**20,
  "TPU7x": 64 * 2**20,
}
"""VMEM of a core by the kind of device; others have `_LARGEST_VMEM`."""
_LARGEST_VMEM = 128 * 2**20
"""VMEM of a core where the kind of device is not among those."""


def heads_per_step(device: Device, k: Array, v: Array) -> int:
  """Chooses the value heads of a grid step: as many as run well side by side.

  One chain of small products leaves the units waiting for its own results; what
  other heads have to do fills the gaps. By the schedules of the compiler
  (benchmarks/results/aot_schedule.json), eight heads of 128 take 43 to 66 %
  fewer cycles each than one, and 11 to 29 % fewer than four. Of wide heads four
  are all that VMEM holds: of 256, 9 to 29 % fewer cycles each than for two.
  With two cores there are two blocks at least.

  Args:
    device: What the program is made for.
    k: Keys [n c h k].
    v: Values [n c hv v].
  """
  heads, groups = v.shape[2], v.shape[2] // k.shape[2]
  narrow = max(k.shape[3], v.shape[3]) <= LANES
  most = 8 if narrow else 4
  if device.kind in _TWO_CORES:
    most = min(most, max(heads // 2, 1))
  fitting = (
    x
    for x in (8, 4, 2)
    if x <= most
    and divides_heads(x, heads, groups)
    and step_bytes(x, k, v) <= _VMEM_BYTES
  )
  return next(fitting, 1)


def cores_of(device: Device, count: int) -> int:
  """How many cores share out `count` heads or blocks of channels."""
  return 2 if device.kind in _TWO_CORES and count % 2 == 0 else 1


def divides_heads(block: int, heads: int, groups: int) -> bool:
  """Whether steps of `block` value heads take whole groups, or parts of one.

  Args:
    block: Value heads of a step.
    heads: All value heads.
    groups: Value heads of a key head.
  """
  return heads % block == 0 and (block % groups == 0 or groups % block == 0)


def step_bytes(block: int, k: Array, v: Array) -> int:
  """Estimates what a step of `block` value heads holds in VMEM.

  Inputs, outputs and states are there twice, in whole registers; of what lies
  between, twelve matrices of each shape that a chunk has were found to be
  enough for every operation that compiles.

  Args:
    block: Value heads of a step.
    k: Keys [n c h k].
    v: Values [n c hv v].
  """
  size, key, value = (
    v.shape[1],
    whole_lanes(k.shape[3]),
    whole_lanes(v.shape[3]),
  )
  buffers = 2 * (key * value + size * (2 * value + 2 * key))
  between = 12 * size * (whole_lanes(size) + key + value)
  return 4 * block * (buffers + between)


def whole_lanes(width: int) -> int:
  """Rounds `width` up to whole registers, in lanes."""
  return -(-width // LANES) * LANES


def channels_per_step(device: Device, x: Array, arrays: int) -> int:
  """Chooses the channels of a grid step: whole registers that VMEM holds.

  The widest block of a few that divides the channels: the tokens of a chunk
  are steps in a row, so a step should be wide (2,048 channels take 17 to 43 %
  fewer cycles each than 1,024). With two cores there are two blocks at least.

  Args:
    device: What the program is made for.
    x: Inputs [n c d].
    arrays: How many such a step reads.
  """
  size, width = x.shape[1:]
  share = width
  if device.kind in _TWO_CORES and width % (2 * LANES) == 0:
    share = width // 2
  fitting = (
    block
    for block in (2048, 1024, 512, 256, 128)
    if share % block == 0 and channel_bytes(block, size, arrays) <= _VMEM_BYTES
  )
  return next(fitting, width)


def channel_bytes(block: int, size: int, arrays: int) -> int:
  """Estimates what a step on channels holds in VMEM, everything twice.

  Args:
    block: Channels of a step.
    size: The tokens of a chunk.
    arrays: How many arrays a step reads, counted as float32.
  """
  return 4 * 2 * (arrays + 1) * size * block


def rows_lie_together(rows: int, dtype: Any, width: int = LANES) -> bool:
  """Whether XLA lays out [..., rows, width] in the order of its axes.

  It has tiles of 1, 2, 4 and 8 rows of 32 bits, and none of one row of 16 bits.
  With other rows it avoids padding: the axis before takes their place. So it
  does with one row that does not fill its lanes. A kernel that asks for another
  order than XLA's gets a copy of the whole array.

  Args:
    rows: Length of the last axis but one.
    dtype: Dtype of the array.
    width: Length of the last axis.
  """
  whole = rows in (2, 4) or rows % 8 == 0
  alone = rows == 1 and width % LANES == 0
  return whole or (alone and jnp.dtype(dtype).itemsize == 4)


def order_of_pool(shape: tuple[int, ...], dtype: Any) -> tuple[int, ...] | None:
  """The order of axes in memory, slowest first, in which a kernel takes a pool.

  Only where it has to be asked for: None where XLA takes the same one unasked,
  or where the last axis tells that no kernel reads the pool itself. All kernels
  may still refuse what has an order, as they do states of k = 48 and v = 64;
  XLA's own scatters and loops work in it then.

  Args:
    shape: Shape of the pool: states [s hv k v], pages [p c hkv k], or others.
    dtype: Dtype of the pool.
  """
  if len(shape) != 4 or shape[-1] % LANES != LANES // 2:
    return None
  together = rows_lie_together(shape[2], dtype, shape[3])
  return (0, 1, 2, 3) if together else (0, 2, 1, 3)


def refusal_of_heads(
  config: Config,
  q: Array,
  k: Array,
  v: Array,
  pool: Array,
  precision: lax.Precision,
) -> str | None:
  """Why an operation on states [s hv k v] does not fit, or None.

  Args:
    config: Sizes; the block has to divide the value heads.
    q: Queries [n c h k].
    k: Keys; c in multiples of 16 (forward substitution, tiles of bfloat16).
    v: Values [n c hv v]; k and v in multiples of 64.
    pool: States, float32.
    precision: Precision of the products.
  """
  size, heads, width = k.shape[1:]
  if size % 16:
    return f"chunks of {size} tokens are not a multiple of 16"
  if width % 64 or v.shape[3] % 64:
    return f"widths {width} and {v.shape[3]} are not multiples of 64"
  block, value_heads = config.block, v.shape[2]
  if block < 1 or not divides_heads(block, value_heads, value_heads // heads):
    return (
      f"block {block} does not divide {value_heads} value heads of {heads} key "
      "heads into whole groups or equal parts of one"
    )
  taken = step_bytes(block, k, v)
  if taken > _VMEM_BYTES:
    return (
      f"{block} value heads of a chunk of {size} tokens take about {taken} "
      f"bytes of VMEM, above {_VMEM_BYTES}"
    )
  reason = refusal_of_types((q, k, v), precision)
  return reason or refusal_of_state(pool)


def refusal_of_channels(config: Config, x: Array, arrays: int) -> str | None:
  """Why an operation on independent channels [n c d] does not fit, or None.

  Args:
    config: Sizes; the block counts channels, in whole registers.
    x: Inputs; c in multiples of 16, d in multiples of 128.
    arrays: How many arrays a step reads.
  """
  size, width = x.shape[1:]
  if size % 16:
    return f"chunks of {size} tokens are not a multiple of 16"
  if width % 128:
    return f"{width} channels are not a multiple of 128"
  block = config.block
  if block < 1 or block % LANES or width % block:
    return f"block {block} is not a multiple of 128 dividing {width}"
  taken = channel_bytes(block, size, arrays)
  if taken > _VMEM_BYTES:
    return (
      f"{block} channels of a chunk of {size} tokens take about {taken} bytes "
      f"of VMEM, above {_VMEM_BYTES}"
    )
  return refusal_of_types((x,), lax.Precision.HIGHEST)


def refusal_of_types(
  xs: Sequence[Array], precision: lax.Precision
) -> str | None:
  """Why inputs of these types or this precision do not fit, or None.

  Mosaic has products in one bfloat16 pass and in float32, and nothing between.
  """
  for x in xs:
    if x.dtype not in (jnp.float32, jnp.bfloat16):
      return f"inputs of {x.dtype} are neither float32 nor bfloat16"
  if precision not in (lax.Precision.HIGHEST, lax.Precision.DEFAULT):
    return f"products at {precision} are neither at HIGHEST nor at DEFAULT"
  return None


def refusal_of_state(pool: Array) -> str | None:
  """Why states of this type do not fit, or None.

  The carry between chunks is float32; a pool of less would round what it keeps,
  and a resumed request would differ from a cold one.
  """
  if pool.dtype != jnp.float32:
    return f"states are {pool.dtype} and must be float32"
  return None


def vmem_bytes(device: Device) -> int:
  """The VMEM of a core, which a kernel can be given at most.

  Args:
    device: What the program is made for; the largest is taken for one that is
      not known, such as that of an interpreter.
  """
  return _WHOLE_VMEM.get(device.kind, _LARGEST_VMEM)


def scalar_bytes(*scalars: Array) -> int:
  """The SMEM of what a kernel is given ahead.

  Rows fill whole registers, and their number is rounded up to a power of two,
  or above 8 to a multiple of 8.

  Args:
    *scalars: Arrays of 32 bits.
  """
  return 4 * sum(
    _whole_rows(math.prod(x.shape[:-1])) * whole_lanes(x.shape[-1])
    for x in scalars
  )


def _whole_rows(count: int) -> int:
  """Rounds a number of rows up to what SMEM keeps them in."""
  return min(-(-count // 8) * 8, 1 << max(count - 1, 0).bit_length())
