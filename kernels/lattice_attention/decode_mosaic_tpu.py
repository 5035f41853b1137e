"""lattice_attention_step on TPU: one grid step per row, block after block.

The kernel of `mosaic_tpu.py` with one token per row: the query heads of a key
head are the rows of its products, and the pages of a block come by DMA while
the block before is reduced. A core runs one program after another, so nothing
is won by more programs for a row: its blocks are combined in their order on the
absolute grid, as they are visited, and no partial result leaves VMEM.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.lattice_attention import (
  chunks_mosaic_tpu,
  mosaic_tpu,
  xla,
)
from sparse_prefix_jax.kernels.lattice_attention.fit_mosaic_tpu import (
  bytes_of_rows,
  refusal_of_pages,
)
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit

_ROWS = 16
"""What queries of a key head are padded to: whole registers of 16 bits."""


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
  config: mosaic_tpu.Config,
  value_width: int | None = None,
  name: str = "lattice_attention_step",
) -> tuple[Float32[Array, "b h v"], tuple[Float[Array, "p c hkv k"], ...]]:
  """Writes keys and values of a token per row, or latents, then attends.

  Args:
    q: Queries, scaled.
    tokens: Keys and values of the tokens; or latents, which are both.
    pools: Pages of the same.
    position: Of each token.
    active: False for a free row.
    page_table: Pages of each row, in order.
    block_pages: Pages of one product.
    window: Keys that a token sees, or None.
    precision: Of the products.
    config: Of the kernel.
    value_width: Channels of a latent that are its value; None for two pools.
    name: What a profile calls the kernel.
  """
  pools = xla.write_rows(pools, tokens, position, active, page_table)
  b, heads, width = q.shape
  kv_heads = tokens[0].shape[1]
  groups = heads // kv_heads
  rows = q.reshape(b, kv_heads, groups, width)
  rows = jnp.pad(rows, ((0, 0), (0, 0), (0, -groups % _ROWS), (0, 0)))
  number = jnp.arange(b, dtype=jnp.int32)
  chunks = Chunks(
    read=number,
    write=number,
    length=active.astype(jnp.int32),
    position=position,
    request=number,
  )
  sizes = mosaic_tpu.AttentionSizes.of_call(
    q,
    pools,
    queries=1,
    block_pages=block_pages,
    window=window,
    precision=precision,
    value_width=value_width,
  )
  out = mosaic_tpu.attend(rows, pools, chunks, page_table, sizes, config, name)
  return out[:, :, :groups].reshape(b, heads, -1), pools


def refusal_of_rows(
  device: Device,
  config: mosaic_tpu.Config,
  *arguments: Any,
  block_pages: int,
  precision: lax.Precision,
  value_width: int | None = None,
  **_: Any,
) -> str | None:
  """Why a call on tokens of rows does not fit a TPU, or None.

  Args:
    device: What the program is made for.
    config: Of the kernel.
    *arguments: Those of the operation.
    block_pages: Pages of one product.
    precision: Precision of the products.
    value_width: As of `attend_rows`.
  """
  *arrays, position, _active, page_table = arguments
  q, k = arrays[:2]
  groups = q.shape[1] // k.shape[1]
  rows = groups + -groups % _ROWS
  keys = block_pages * arrays[-1].shape[1]
  # Measured: 32 heads of width 64 in float32 fit a v5e, 64 in bfloat16 do not,
  # of which more is taken than what is counted here.
  taken = bytes_of_rows(rows, k, keys, value_width) * 21 // 20
  scalars = position, position, position, page_table
  limit = config.vmem_limit_bytes
  return refusal_of_pages(device, limit, arrays, scalars, taken, precision)


IMPLEMENTATION = Implementation(
  mosaic_tpu.Config,
  over_pools(attend_rows, 2),
  refusal_of_rows,
  chunks_mosaic_tpu.IMPLEMENTATION.heuristic,
)
