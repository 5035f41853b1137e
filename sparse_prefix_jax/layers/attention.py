"""Gated attention with grouped queries over lattice pages."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_chunks
from sparse_prefix_jax.kernels.lattice_attention import (
  lattice_attention,
  lattice_attention_step,
)
from sparse_prefix_jax.layers.dense import dense, kernel
from sparse_prefix_jax.layers.normalization import rms_norm
from sparse_prefix_jax.layers.rotary import RopeScaling, rotate


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """Static choices of a gated attention layer.

  Attributes:
    width: Model width d.
    heads: Query heads, a multiple of kv_heads.
    kv_heads: Heads hkv of keys and values.
    head_width: Width k of a head.
    rotary_width: Leading channels of a head that are rotated.
    theta: Base of the rotary frequencies.
    eps: What the norms of queries and keys add to the mean square.
    dtype: The type of weights and activations.
    precision: The precision of the matrix products.
    implementation: Which implementation of the operation runs; None takes the
      best that fits.
    scaling: How the rotary frequencies are scaled; None leaves them.
  """

  width: int
  heads: int
  kv_heads: int
  head_width: int
  rotary_width: int
  theta: float
  eps: float
  dtype: str
  precision: str
  implementation: str | None = None
  scaling: RopeScaling | None = None


class PagePools(NamedTuple):
  """The keys and values of one layer, with one page per chunk.

  Attributes:
    keys: The keys of every page. [p c hkv k]
    values: The values of every page. [p c hkv k]
  """

  keys: at.PagePool
  values: at.PagePool


class GatedAttention(nnx.Module):
  """W_o (softmax(q K^T / sqrt(k)) V * sigmoid(g)), q and g from one product.

  Queries and keys are normalised per head and rotated by absolute position.
  """

  def __init__(self, config: AttentionConfig, *, rngs: nnx.Rngs) -> None:
    c = config
    queries, keys = c.heads * c.head_width, c.kv_heads * c.head_width
    self.config = config
    self.in_query_gate = kernel(rngs, c.width, 2 * queries, c.dtype)
    self.in_key = kernel(rngs, c.width, keys, c.dtype)
    self.in_value = kernel(rngs, c.width, keys, c.dtype)
    self.query_norm = nnx.Param(jnp.zeros(c.head_width, jnp.dtype(c.dtype)))
    self.key_norm = nnx.Param(jnp.zeros(c.head_width, jnp.dtype(c.dtype)))
    self.out = kernel(rngs, queries, c.width, c.dtype)

  def init_pools(self, *, slots: int, pages: int, chunk: int) -> PagePools:
    """Makes pools of zeros for that many pages of `chunk` tokens."""
    del slots  # attention keeps no state
    c = self.config
    shape = (pages, chunk, c.kv_heads, c.head_width)
    dtype = jnp.dtype(c.dtype)
    return PagePools(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: PagePools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], PagePools]:
    """Writes the pages of n packed chunks, then attends to all before them.

    Args:
      x: Normalised inputs.
      pools: The pages, donated: the result takes their memory.
      chunks: Position, length and page-table row of each chunk.
      page_table: Pages of each request, in order.

    Returns:
      The outputs, and the pools with the chunks' pages.
    """
    tokens = jnp.arange(x.shape[1])
    position = chunks.position[:, None] + tokens[None]
    projected = self._project(x)
    with jax.named_scope("heads"):
      q, gate, k, v = map_chunks(self._heads, *projected, position)
    with jax.named_scope("attention"):
      out, keys, values = lattice_attention(
        *(q, k, v, pools.keys, pools.values, chunks, page_table),
        precision=jax.lax.Precision(self.config.precision),
        implementation=self.config.implementation,
      )
    with jax.named_scope("heads"):
      out = map_chunks(_gate, out, gate)
    return self._close(out), PagePools(keys, values)

  def step(
    self,
    x: Float[Array, "b d"],
    pools: PagePools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], PagePools]:
    """Runs one token of each of b running sequences through the layer.

    Args:
      x: Normalised inputs, one row per sequence.
      pools: The pages, donated: the result takes their memory.
      rows: The position of each row, and whether a sequence holds it.
      page_table: Pages of each sequence, in order.

    Returns:
      The outputs, and the pools with the tokens' keys and values.
    """
    q, gate, k, v = self._heads(*self._project(x), rows.position)
    out, keys, values = lattice_attention_step(
      q,
      k,
      v,
      pools.keys,
      pools.values,
      rows.position,
      rows.active,
      page_table,
      precision=jax.lax.Precision(self.config.precision),
    )
    return self._close(_gate(out, gate)), PagePools(keys, values)

  def _project(
    self, x: Float[Array, "*rows d"]
  ) -> tuple[Float[Array, "*rows qg"], Array, Array]:
    precision = self.config.precision
    query_gate = dense(x, self.in_query_gate[...], precision)
    key = dense(x, self.in_key[...], precision)
    return query_gate, key, dense(x, self.in_value[...], precision)

  def _close(self, out: Float[Array, "*rows queries"]) -> Array:
    return dense(out, self.out[...], self.config.precision)

  def _heads(
    self,
    query_gate: Float[Array, "rows qg"],
    key: Float[Array, "rows keys"],
    value: Float[Array, "rows keys"],
    position: Int32[Array, "rows"],
  ) -> tuple[Array, Array, Array, Array]:
    """Splits projections into heads, normalises and rotates queries and keys.

    The queries that are returned are scaled; the gate and the values are not
    changed.
    """
    c = self.config
    query_gate = query_gate.reshape(-1, c.heads, 2 * c.head_width)
    q, gate = jnp.split(query_gate, 2, axis=-1)
    k = key.reshape(-1, c.kv_heads, c.head_width)
    v = value.reshape(-1, c.kv_heads, c.head_width)
    q = rms_norm(q, self.query_norm[...], c.eps)
    k = rms_norm(k, self.key_norm[...], c.eps)
    rope = (c.rotary_width, c.theta, c.scaling)
    q, k = (rotate(u, position, *rope) for u in (q, k))
    q = (q.astype(jnp.float32) * c.head_width**-0.5).astype(q.dtype)
    return q, gate, k, v


def _gate(
  out: Float32[Array, "rows h k"], gate: Float[Array, "rows h k"]
) -> Float[Array, "rows queries"]:
  """Multiplies outputs by sigmoid(gate) and puts heads side by side."""
  opened = out * jax.nn.sigmoid(gate.astype(jnp.float32))
  return opened.astype(gate.dtype).reshape(gate.shape[0], -1)
