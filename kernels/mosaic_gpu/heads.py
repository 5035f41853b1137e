"""Which heads the matrix-valued recurrences take on a GPU, at which sizes."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  SHARED_BYTES,
  Gpu,
  gpu_of,
  refused_device,
  refused_sizes,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
)
from sparse_prefix_jax.kernels.mosaic_gpu.state_factors import PARTS
from sparse_prefix_jax.kernels.mosaic_gpu.state_shared import BLOCK
from sparse_prefix_jax.kernels.mosaic_gpu.state_transposed import takes

_WIDTHS = (64, 128, 256)
_FEWEST_COLUMNS = 16
"""Columns of a right operand, at least: a row of a tile has 32 bytes."""


def shared_bytes(
  gpu: Gpu,
  width: int,
  columns: int,
  stages: int,
  value_bytes: int,
  operands: int,
) -> int:
  """Counts the bytes of shared memory that a program takes.

  Args:
    gpu: What the program is made for.
    width: Keys of a head.
    columns: Value columns of a program.
    stages: How many chunks are under way at a time.
    value_bytes: Bytes of an element of X_v.
    operands: How many buffers [c k] of bfloat16 the scan loads per chunk: one
      or two for K and for Q each, none or one for X_k.
  """
  loads = 2 * CHUNK * (width * operands + PARTS * CHUNK)
  loads += value_bytes * CHUNK * columns + 4 * (2 * CHUNK + width)
  if takes(gpu, width, columns):
    return stages * loads + 4 * width * columns
  own = 2 * PARTS * columns * (width + 2 * CHUNK) + 4 * BLOCK * columns
  return stages * loads + own


def sizes(
  gpu: Gpu,
  width: int,
  value_columns: int,
  value_bytes: int,
  operands: int,
) -> MosaicGpuConfig:
  """Chooses columns and stages for a head of `width` keys.

  Where S^T can lie in registers it does, in programs of 64 columns. Elsewhere
  registers and shared memory bound the columns. A second stage, which hides
  the loads of a chunk behind the one before, is worth more than wide programs.
  Narrow ones are more: they fill a device with the heads of one request, and
  where programs of 64 columns would leave multiprocessors idle, 32 are taken.
  Heads of 256 keys leave room for neither; 16 columns are the fewest that
  products take.

  How many requests there are must not be asked: a packing would change bits.

  Args:
    gpu: What the program is made for.
    width: Keys of a head.
    value_columns: Value columns of all heads.
    value_bytes: The bytes of an element of X_v.
    operands: How many buffers the scan loads per chunk, as in `shared_bytes`.
  """
  ladder = [(64, 2), (32, 2), (32, 1), (16, 1)]
  if takes(gpu, width, 64):
    ladder.insert(1, (64, 1))
  elif value_columns < 64 * gpu.multiprocessors:
    ladder = ladder[1:]
  for columns, stages in ladder:
    taken = shared_bytes(gpu, width, columns, stages, value_bytes, operands)
    if taken <= SHARED_BYTES:
      break
  return MosaicGpuConfig(columns=columns, stages=stages)


def implementation(
  run: Callable[..., Any], *, value_bytes: int, operands: int
) -> Implementation:
  """The implementation of an operation that ends in this scan.

  Args:
    run: What computes the operation: preparation and scan.
    value_bytes: The bytes of an element of X_v.
    operands: How many buffers the scan loads per chunk, as in `shared_bytes`.
  """

  def refusal(
    device: Device,
    config: MosaicGpuConfig,
    q: Array,
    k: Array,
    v: Array,
    *_: Any,
    **__: Any,
  ) -> str | None:
    columns, stages = config.columns, config.stages
    taken = shared_bytes(
      gpu_of(device), q.shape[3], columns, stages, value_bytes, operands
    )
    return (
      refused_device(device, config, products=True)
      or unfit(q, k, v, config)
      or refused_sizes(stages, taken)
    )

  def heuristic(
    device: Device, q: Array, k: Array, v: Array, *_: Any, **__: Any
  ) -> MosaicGpuConfig:
    value_columns = v.shape[2] * v.shape[3]
    return sizes(
      gpu_of(device), q.shape[3], value_columns, value_bytes, operands
    )

  return Implementation(MosaicGpuConfig, run, within_grid(refusal), heuristic)


def unfit(q: Array, k: Array, v: Array, config: MosaicGpuConfig) -> str | None:
  """Why the kernels do not take these heads, or None.

  Args:
    q: Queries. [n c h k]
    k: Keys. [n c h k]
    v: Values. [n c hv v]
    config: The static sizes of the kernel.
  """
  dtypes = {x.dtype for x in (q, k, v)}
  if dtypes != {jnp.dtype(jnp.bfloat16)}:
    return "takes bfloat16 only, the operands of its products"
  if q.shape[1] != CHUNK:
    return f"takes chunks of {CHUNK} tokens, and these have {q.shape[1]}"
  if q.shape[3] not in _WIDTHS or v.shape[3] not in _WIDTHS:
    return f"takes heads of {_WIDTHS}, and these are {q.shape[3]}, {v.shape[3]}"
  if config.columns < _FEWEST_COLUMNS or v.shape[3] % config.columns:
    return (
      f"cannot cut {v.shape[3]} value columns into {config.columns}; "
      f"{_FEWEST_COLUMNS} are the fewest"
    )
  return None
