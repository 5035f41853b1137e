"""What attention keeps: keys and values as they are, or quantised chunks.

With `page_dtype` "int8" a page holds the codes of a completed chunk, and a slot
holds the keys and values of the chunk that runs. That is a part of the carry
inside a chunk: a fork copies it, whoever waits in the host takes it along, and
in the slots of lattice points, where no chunk runs, it is zeros.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.kernels.lattice_attention import (
  Int8Pages,
  RunningPages,
  lattice_attention,
  lattice_attention_int8,
  lattice_attention_int8_step,
  lattice_attention_step,
)
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools


class KeysValues(NamedTuple):
  """What an attention layer keeps of the tokens of a page.

  Attributes:
    keys: The keys of every page. [p c hkv k]
    values: The values of every page. [p c hkv k]
  """

  keys: at.PagePool | jax.ShapeDtypeStruct
  values: at.PagePool | jax.ShapeDtypeStruct


class Heads(NamedTuple):
  """Queries, keys and values of packed chunks, or of one token of each row.

  Attributes:
    q: Queries, scaled. [n c h k] or [b h k]
    k: Keys. [n c hkv k] or [b hkv k]
    v: Values. [n c hkv k] or [b hkv k]
  """

  q: Float[Array, "*rows h k"]
  k: Float[Array, "*rows hkv k"]
  v: Float[Array, "*rows hkv k"]


def kept_pages(
  kv_heads: int, head_width: int, numerics: Numerics
) -> BranchPools:
  """Declares what is kept of keys and values.

  Args:
    kv_heads: Heads of keys and values.
    head_width: Of one of them.
    numerics: Says how they are kept.

  Returns:
    The shapes of one slot and of one page.

  Example:
    >>> kept = kept_pages(2, 32, Numerics(page_dtype="int8"))
    >>> kept.pages.keys.dtype, kept.pages.key_scales.shape
    (dtype('int8'), (2,))
    >>> kept.slots.keys.dtype
    dtype('float32')
  """
  shape = numerics.chunk, kv_heads, head_width
  # Shapes, in the place of the arrays that the fields will hold.
  page: Any = jax.ShapeDtypeStruct(shape, jnp.dtype(numerics.dtype))
  if numerics.page_dtype is None:
    return BranchPools(pages=KeysValues(keys=page, values=page))
  codes: Any = jax.ShapeDtypeStruct(shape, jnp.dtype(numerics.page_dtype))
  scales: Any = jax.ShapeDtypeStruct((kv_heads,), jnp.dtype("float32"))
  return BranchPools(
    slots=RunningPages(page, page),
    pages=Int8Pages(codes, codes, scales, scales),
  )


def attend_packed(
  heads: Heads,
  pools: BranchPools,
  chunks: Chunks,
  page_table: at.PageTable,
  *,
  window: int | None,
  numerics: Numerics,
) -> tuple[Float32[Array, "n c h k"], BranchPools]:
  """Writes what packed chunks keep, and attends.

  Args:
    heads: Of the chunks.
    pools: Donated: the result takes their memory.
    chunks: What each reads, writes and holds.
    page_table: Pages of each request, in order.
    window: Tokens that a token sees, or None.
    numerics: How it is computed.

  Returns:
    The outputs, and the pools.
  """
  precision = numerics.product_precision
  implementation = numerics.forced_implementation
  if numerics.page_dtype is None:
    out, *pages = lattice_attention(
      *heads,
      pools.pages.keys,
      pools.pages.values,
      chunks,
      page_table,
      window=window,
      precision=precision,
      implementation=implementation,
    )
    return out, pools._replace(pages=KeysValues(*pages))
  out, running, pages = lattice_attention_int8(
    *heads,
    pools.slots,
    pools.pages,
    chunks,
    page_table,
    window=window,
    precision=precision,
    implementation=implementation,
  )
  return out, BranchPools(running, pages)


def attend_step(
  heads: Heads,
  pools: BranchPools,
  rows: Rows,
  page_table: at.PageTable,
  *,
  window: int | None,
  numerics: Numerics,
) -> tuple[Float32[Array, "b h k"], BranchPools]:
  """Writes what one token of each row keeps, and attends.

  Args:
    heads: Of the tokens.
    pools: Donated: the result takes their memory.
    rows: What each row reads and writes.
    page_table: Pages of each sequence, in order.
    window: Tokens that a token sees, or None.
    numerics: How it is computed.

  Returns:
    The outputs, and the pools.
  """
  precision = numerics.product_precision
  implementation = numerics.forced_step_implementation
  if numerics.page_dtype is None:
    out, *pages = lattice_attention_step(
      *heads,
      pools.pages.keys,
      pools.pages.values,
      rows.position,
      rows.active,
      page_table,
      window=window,
      precision=precision,
      implementation=implementation,
    )
    return out, pools._replace(pages=KeysValues(*pages))
  out, running, pages = lattice_attention_int8_step(
    *heads,
    pools.slots,
    pools.pages,
    rows,
    page_table,
    window=window,
    precision=precision,
    implementation=implementation,
  )
  return out, BranchPools(running, pages)
