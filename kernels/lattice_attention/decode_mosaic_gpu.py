"""lattice_attention_step on GPU: ranges of pages, then their combination.

One token reads all keys and values of its sequence once and computes little, so
what counts is that the whole device reads. A program of the first kernel takes
the query heads that share a key head of one row, and a *range* of RANGE_PAGES
pages on the absolute grid; it walks through its pages with the online softmax,

    m' = max(m, max s),  l' = l e^{m-m'} + sum e^{s-m'},
    o' = o e^{m-m'} + e^{s-m'} V

and leaves m, l and o. A program of the second kernel combines the ranges of one
row and such heads in their order. Where a range begins is said by its position
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
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
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
MOST_LATENT_HEADS = 16
"""Query heads of a program that attends to latents, at most."""
_STAGES = {64: (4, 2, 1), 128: (2, 1), 256: (3, 2, 1)}
"""Stages to try, by width: three programs share a multiprocessor at 64 and 128,
and one has it alone at 256."""


def attend_rows(
  q: Float[Array, "b h k"],
  tokens: tuple[Float[Array, "b hkv k"], ...],
  pools: tuple[Float[Array, "p c hkv k"], ...],
  position: Int32[Array, "b"],
  active: Bool[Array, "b"],
  page_table: Int32[Array, "b pages"],
  *,
  block_pages: int,
  window: int | None,
  precision: lax.Precision,
  config: MosaicGpuConfig,
  value_width: int | None = None,
  name: str = "lattice_attention",
) -> tuple[Float32[Array, "b h v"], tuple[Float[Array, "p c hkv k"], ...]]:
  """Writes keys and values of a token per row, or latents, then attends.

  Args:
    q: Queries, scaled.
    tokens: Keys and values of the tokens; or latents, which are both.
    pools: Pages of the same.
    position: Of each token.
    active: False for a free row, whose outputs are zeros.
    page_table: Pages of each row, in order.
    block_pages: Says nothing: a block is a page.
    window: Keys that a token sees, or None.
    precision: Says nothing: products of bfloat16 are exact.
    config: Of the kernels.
    value_width: Channels v of a latent that are its value; None for two pools.
    name: What a profile calls the kernels, in front.
  """
  del block_pages, precision
  pools = xla.write_rows(pools, tokens, position, active, page_table)
  first = jnp.zeros_like(position)
  if window is not None:
    first = jnp.maximum(position - window + 1, 0) // CHUNK
  stop = jnp.where(active, position // CHUNK + 1, 0)
  row = Row(*(x.astype(jnp.int32) for x in (position, first, stop)))
  b, all_heads, width = q.shape
  heads = heads_of_program(all_heads // tokens[0].shape[1], value_width)
  grouped = q.reshape(b, all_heads // heads, heads, width)
  missing = _columns(heads) - heads
  grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, missing), (0, 0)))
  partial, sums = ranges_mosaic_gpu.attend(
    grouped,
    pools,
    row,
    page_table,
    window=window,
    value_width=value_width or width,
    config=config,
    name=f"{name}_ranges",
  )
  out = combination_mosaic_gpu.combine(
    partial, sums, row, config, f"{name}_combine"
  )
  out = out.swapaxes(2, 3)[:, :, :heads]
  return out.reshape(b, all_heads, -1), pools


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
    config.stages, bytes_of_rows(width, groups, config.stages)
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
    if bytes_of_rows(width, groups, stages) <= SHARED_BYTES
  ]
  return MosaicGpuConfig(stages=fitting[0] if fitting else 1)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=over_pools(attend_rows, 2),
  refusal=within_grid(refusal),
  heuristic=heuristic,
)


def heads_of_program(groups: int, value_width: int | None) -> int:
  """Query heads of a program; those of a key head are a multiple of it.

  Args:
    groups: Query heads of a key head, or of a latent.
    value_width: Channels of a latent that are its value, or None.
  """
  return groups if value_width is None else min(groups, MOST_LATENT_HEADS)


def _columns(heads: int) -> int:
  """Columns of a product that has a column per head: a multiple of 8."""
  return -(-heads // 8) * 8


def bytes_of_rows(width: int, heads: int, stages: int, pools: int = 2) -> int:
  """Counts the bytes of queries, pages and weights, in bfloat16.

  Args:
    width: Width of a head.
    heads: Query heads of a program.
    stages: How many pages are under way at a time.
    pools: Two, of keys and of values; or one of latents.
  """
  own = _columns(heads) * (width + PARTS * CHUNK)
  return 2 * (own + pools * stages * CHUNK * width)
