"""lattice_attention_step on GPU: ranges of pages, then their combination.

One token reads all keys and values of its sequence once and computes little, so
what counts is that the whole device reads. A program of the first kernel takes
the query heads that share a key head of one row, and a *range* of RANGE_PAGES
pages on the absolute grid; it walks through its pages with the online softmax,

    m' = max(m, max s),  l' = l e^{m-m'} + sum e^{s-m'},
    o' = o e^{m-m'} + e^{s-m'} V

and leaves m, l and o. A program of the second kernel combines the ranges of one
row and key head in their order. Where a range begins is said by its position
alone, so the bits depend on the tokens alone.

Tokens, not heads, are the rows of a product of a warpgroup, which has 64:

    S^T = K q^T        [64 tokens, g heads]
    o^T = V^T P^T      [k, g heads]

and the heads of a group are its columns, of which there may be 8. P goes into
its product as the sum of two bfloat16 parts.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.lattice_attention import (
  combination_mosaic_gpu,
  ranges_mosaic_gpu,
  xla,
)
from sparse_prefix_jax.kernels.lattice_attention.mosaic_gpu import WIDTHS
from sparse_prefix_jax.kernels.lattice_attention.ranges_mosaic_gpu import (
  PARTS,
  Row,
)
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  SHARED_BYTES,
  gpu_of,
  refused_device,
  refused_sizes,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, MosaicGpuConfig

_MOST_HEADS = {64: 64, 128: 40, 256: 24}
"""Query heads per key head at most, by width: with more of them the compiler
runs out of registers."""
_STAGES = {64: (4, 2, 1), 128: (2, 1), 256: (3, 2, 1)}
"""Stages to try, by width: three programs share a multiprocessor at 64 and 128,
and one has it alone at 256."""


def attend_rows(
  q: Float[Array, "b h k"],
  k: Float[Array, "b hkv k"],
  v: Float[Array, "b hkv k"],
  key_pages: Float[Array, "p c hkv k"],
  value_pages: Float[Array, "p c hkv k"],
  position: Int32[Array, "b"],
  active: Bool[Array, "b"],
  page_table: Int32[Array, "b pages"],
  *,
  block_pages: int,
  window: int | None,
  precision: lax.Precision,
  config: MosaicGpuConfig,
) -> tuple[
  Float32[Array, "b h k"],
  Float[Array, "p c hkv k"],
  Float[Array, "p c hkv k"],
]:
  """Writes one token per row to its page, then attends in two launches.

  Arguments of `lattice_attention_step`. Blocks here are pages, and products of
  bfloat16 are exact, so `block_pages` and `precision` say nothing.

  Returns:
    out, zero in inactive rows, and both pools.
  """
  del block_pages, precision
  key_pages, value_pages = xla.write_rows(
    (key_pages, value_pages), (k, v), position, active, page_table
  )
  first = jnp.zeros_like(position)
  if window is not None:
    first = jnp.maximum(position - window + 1, 0) // CHUNK
  stop = jnp.where(active, position // CHUNK + 1, 0)
  row = Row(*(x.astype(jnp.int32) for x in (position, first, stop)))
  b, heads, width = q.shape
  kv_heads = k.shape[1]
  groups = heads // kv_heads
  grouped = q.reshape(b, kv_heads, groups, width)
  missing = _columns(groups) - groups
  grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, missing), (0, 0)))
  partial, sums = ranges_mosaic_gpu.attend(
    grouped, key_pages, value_pages, row, page_table, window, config
  )
  out = combination_mosaic_gpu.combine(partial, sums, row, config)
  out = out.swapaxes(2, 3)[:, :, :groups]
  return out.reshape(b, heads, width), key_pages, value_pages


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  q: Array,
  k: Array,
  v: Array,
  key_pages: Array,
  value_pages: Array,
  *_: Any,
  **__: Any,
) -> str | None:
  """Why the kernels do not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernels.
    q: Queries. [b h k]
    k: Keys. [b hkv k]
    v: Values. [b hkv k]
    key_pages: The pool of keys. [p c hkv k]
    value_pages: The pool of values. [p c hkv k]
    *_: Further arguments, which do not matter here.
    **__: Further options, which do not matter here.
  """
  dtypes = {x.dtype for x in (q, k, v, key_pages, value_pages)}
  if dtypes != {jnp.dtype(jnp.bfloat16)}:
    return "takes bfloat16 only, the operands of its products"
  if key_pages.shape[1] != CHUNK:
    return f"takes pages of {CHUNK} tokens, and these have {key_pages.shape[1]}"
  heads, width = q.shape[1:]
  if width not in WIDTHS:
    return f"takes heads of {WIDTHS}, and these are {width} wide"
  groups = heads // k.shape[1]
  if groups > _MOST_HEADS[width]:
    return (
      f"takes {_MOST_HEADS[width]} query heads of {width} per key head at "
      f"most, not {groups}"
    )
  refused = refused_device(device, config, products=True) or refused_sizes(
    config.stages, _shared_bytes(width, groups, config.stages)
  )
  if refused is None and not gpu_of(device).warpgroup_products:
    return f"needs products of warpgroups, and a {device.kind} has none"
  return refused


def heuristic(
  device: Device, q: Array, k: Array, *_: Any, **__: Any
) -> MosaicGpuConfig:
  """As many stages as `_STAGES` says and shared memory has room for."""
  width, groups = q.shape[2], q.shape[1] // k.shape[1]
  fitting = [
    stages
    for stages in _STAGES.get(width, (2,))
    if _shared_bytes(width, groups, stages) <= SHARED_BYTES
  ]
  return MosaicGpuConfig(stages=fitting[0] if fitting else 1)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=attend_rows,
  refusal=within_grid(refusal),
  heuristic=heuristic,
)


def _columns(groups: int) -> int:
  """Columns of a product that has a column per head: a multiple of 8."""
  return -(-groups // 8) * 8


def _shared_bytes(width: int, groups: int, stages: int) -> int:
  """Counts the bytes of queries, pages and weights, in bfloat16.

  Args:
    width: Width of a head.
    groups: Query heads per key head.
    stages: How many pages are under way at a time.
  """
  columns = _columns(groups)
  return 2 * (columns * (width + PARTS * CHUNK) + 2 * stages * CHUNK * width)
