"""lattice_attention on TPU: one grid step of the kernel per packed chunk."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.lattice_attention.fit_mosaic_tpu import (
  bytes_of_rows,
  refusal_of_pages,
)
from sparse_prefix_jax.kernels.lattice_attention.mosaic_tpu import (
  AttentionSizes,
  Config,
  attend,
)
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit


def attend_chunks(
  q: Float[Array, "n c h k"],
  tokens: tuple[Float[Array, "n c hkv k"], ...],
  pools: tuple[Float[Array, "p c hkv k"], ...],
  chunks: Chunks,
  page_table: Int32[Array, "requests pages"],
  *,
  block_pages: int,
  window: int | None,
  precision: lax.Precision,
  config: Config,
  value_width: int | None = None,
  name: str = "lattice_attention",
) -> tuple[Float32[Array, "n c h v"], tuple[Float[Array, "p c hkv k"], ...]]:
  """Writes keys and values to their pages, or latents, then attends.

  Pages are written by XLA, in place, before the kernel begins: whichever chunk
  of a request attends first, the pages of the others are there.

  Args:
    q: Queries, scaled.
    tokens: Keys and values of the chunks; or latents, which are both.
    pools: Pages of the same.
    chunks: Position and page-table row of each chunk.
    page_table: Pages of each request, in order.
    block_pages: Pages of one product.
    window: Keys that a token sees, or None.
    precision: Of the products.
    config: Of the kernel.
    value_width: Channels of a latent that are its value; None for two pools.
    name: What a profile calls the kernel.
  """
  n, size, heads = tokens[0].shape[:3]
  own_page = page_table[chunks.request, chunks.position // size]
  own_page = jnp.where(chunks.length > 0, own_page, pools[0].shape[0])
  pools = tuple(
    pool.at[own_page].set(x, mode="drop") for pool, x in zip(pools, tokens)
  )
  # The query heads of a group are rows of one product per key head.
  rows = q.reshape(n, size, heads, -1, q.shape[3]).transpose(0, 2, 3, 1, 4)
  rows = rows.reshape(n, heads, -1, q.shape[3])
  sizes = AttentionSizes.of_call(
    q,
    pools,
    queries=size,
    block_pages=block_pages,
    window=window,
    precision=precision,
    value_width=value_width,
  )
  out = attend(rows, pools, chunks, page_table, sizes, config, name)
  out = out.reshape(n, heads, -1, size, out.shape[3]).transpose(0, 3, 1, 2, 4)
  return out.reshape(*q.shape[:3], -1), pools


def refusal_of_chunks(
  device: Device,
  config: Config,
  *arguments: Any,
  block_pages: int,
  precision: lax.Precision,
  value_width: int | None = None,
  **_: Any,
) -> str | None:
  """Why a call on packed chunks does not fit a TPU, or None.

  Args:
    device: What the program is made for.
    config: Of the kernel.
    *arguments: Those of the operation.
    block_pages: Pages of one product.
    precision: Precision of the products.
    value_width: As of `attend_chunks`.
  """
  *arrays, chunks, page_table = arguments
  q, k = arrays[:2]
  scalars = *chunks[2:], page_table
  size, rows = q.shape[1], q.shape[2] // k.shape[2] * q.shape[1]
  taken = bytes_of_rows(rows, k, block_pages * size, value_width)
  limit = config.vmem_limit_bytes
  return refusal_of_pages(device, limit, arrays, scalars, taken, precision)


def _heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
  """The one limit of memory serves all sizes that were compiled.

  A TPU that has less gives what it has.
  """
  most = min(Config.vmem_limit_bytes, fit.vmem_bytes(device))
  return Config(vmem_limit_bytes=most)


IMPLEMENTATION = Implementation(
  Config, over_pools(attend_chunks, 2), refusal_of_chunks, _heuristic
)
