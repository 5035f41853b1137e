"""lattice_attention on GPU: pages are written, then each chunk attends.

See `chunks_mosaic_gpu.py` for the kernel.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.lattice_attention.chunks_mosaic_gpu import (
  attend_chunks,
)
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  refused_device,
  refused_sizes,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, MosaicGpuConfig

WIDTHS = (64, 128, 256)
"""Widths of heads that kernels take."""


def packed(
  q: Float[Array, "n c h k"],
  tokens: tuple[Float[Array, "n c hkv k"], ...],
  pools: tuple[Float[Array, "p c hkv k"], ...],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  block_pages: int,
  window: int | None,
  precision: lax.Precision,
  config: MosaicGpuConfig,
  value_width: int | None = None,
  name: str = "lattice_attention",
) -> tuple[Float32[Array, "n c h v"], tuple[Float[Array, "p c hkv k"], ...]]:
  """Writes keys and values of all chunks, or latents, then attends.

  Args:
    q: Queries, scaled.
    tokens: Keys and values of the tokens; or latents, which are both.
    pools: Pages of the same.
    chunks: Position, length and page-table row of each chunk.
    page_table: Pages of each request, in order.
    block_pages: Says nothing: a block is a page.
    window: Keys that a token sees, or None.
    precision: Says nothing: products of bfloat16 are exact.
    config: Of the kernel.
    value_width: Channels v of a latent that are its value; None for two pools.
    name: What a profile calls the kernel.
  """
  del block_pages, precision
  own_page = page_table[chunks.request, chunks.position // CHUNK]
  own_page = jnp.where(chunks.length > 0, own_page, pools[0].shape[0])
  pools = tuple(
    pool.at[own_page].set(x, mode="drop")
    for pool, x in zip(pools, tokens, strict=True)
  )
  out = attend_chunks(
    q,
    pools,
    chunks,
    page_table,
    window=window,
    value_width=value_width or q.shape[3],
    config=config,
    name=name,
  )
  return out, pools


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
  """Why the kernel does not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernel.
    q: Queries. [n c h k]
    k: Keys. [n c hkv k]
    v: Values. [n c hkv k]
    key_pages: The pool of keys. [p c hkv k]
    value_pages: The pool of values. [p c hkv k]
    *_: Further arguments, which do not matter here.
    **__: Further options, which do not matter here.
  """
  dtypes = {x.dtype for x in (q, k, v, key_pages, value_pages)}
  if dtypes != {jnp.dtype(jnp.bfloat16)}:
    return "takes bfloat16 only, the operands of its products"
  if q.shape[1] != CHUNK:
    return f"takes chunks of {CHUNK} tokens, and these have {q.shape[1]}"
  if q.shape[3] not in WIDTHS:
    return f"takes heads of {WIDTHS}, and these are {q.shape[3]} wide"
  return refused_device(device, config, products=True) or refused_sizes(
    config.stages, bytes_of_chunks(q.shape[3], config.stages)
  )


def bytes_of_chunks(width: int, stages: int, pools: int = 2) -> int:
  """Counts the bytes of queries, pages and weights, in bfloat16.

  Args:
    width: Width of a head.
    stages: How many pages are under way at a time.
    pools: Two, of keys and of values; or one of latents.
  """
  return 2 * CHUNK * (width * (1 + pools * stages) + CHUNK)


def heuristic(device: Device, *_: Any, **__: Any) -> MosaicGpuConfig:
  """Two stages: at 128 columns two programs share a multiprocessor then."""
  return MosaicGpuConfig(stages=2)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=over_pools(packed, 2),
  refusal=within_grid(refusal),
  heuristic=heuristic,
)
