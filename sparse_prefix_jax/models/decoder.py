"""HybridDecoder: layers stacked, states and pages passed in and out."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers import (
  GatedAttention,
  GatedDeltaNet,
  Mixer,
  PagePools,
  StatePools,
  SwiGLU,
)
from sparse_prefix_jax.layers.normalization import residual_norm
from sparse_prefix_jax.models.config import ATTENTION, ModelConfig

Pools: TypeAlias = tuple[StatePools | PagePools, ...]
"""One entry per layer: slots of a recurrent layer, or pages of attention."""


def map_pools(
  pools: Pools,
  on_slots: Callable[[Array], Array],
  on_pages: Callable[[Array], Array],
) -> Pools:
  """Applies one function to all arrays of slots, another to those of pages."""
  return tuple(
    jax.tree.map(on_pages if isinstance(layer, PagePools) else on_slots, layer)
    for layer in pools
  )


class DecoderLayer(nnx.Module):
  """One layer: it adds mixer(norm(x)) to x, then SwiGLU(norm(x)) to the sum."""

  def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs) -> None:
    dtype = jnp.dtype(config.dtype)
    self.eps = config.eps
    self.mixer_norm = nnx.Param(jnp.zeros(config.width, dtype))
    self.mixer: Mixer = (
      GatedAttention(config.attention, rngs=rngs)
      if kind == ATTENTION
      else GatedDeltaNet(config.gated_delta_net, rngs=rngs)
    )
    self.mlp_norm = nnx.Param(jnp.zeros(config.width, dtype))
    self.mlp = SwiGLU(
      config.width,
      config.hidden,
      dtype=config.dtype,
      precision=config.precision,
      rngs=rngs,
    )

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: StatePools | PagePools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], StatePools | PagePools]:
    """Runs n packed chunks through the layer.

    Args:
      x: The residual stream.
      pools: What this layer keeps, donated: the result takes its memory.
      chunks: What each chunk reads, writes and holds.
      page_table: Pages of each request, in order.

    Returns:
      The residual stream, and the pools with what was captured.
    """
    normed = residual_norm(x, self.mixer_norm[...], self.eps)
    mixed, pools = self.mixer(normed, pools, chunks, page_table)
    return self._feed_forward(x + mixed), pools

  def step(
    self,
    x: Float[Array, "b d"],
    pools: StatePools | PagePools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], StatePools | PagePools]:
    """Runs one token of each of b running sequences through the layer.

    Args:
      x: The residual stream, one row per sequence.
      pools: What this layer keeps, donated: the result takes its memory.
      rows: What each row reads and writes.
      page_table: Pages of each sequence, in order.

    Returns:
      The residual stream, and the pools with the tokens' states or keys.
    """
    normed = residual_norm(x, self.mixer_norm[...], self.eps)
    mixed, pools = self.mixer.step(normed, pools, rows, page_table)
    return self._feed_forward(x + mixed), pools

  def _feed_forward(self, x: Float[Array, "*rows d"]) -> Array:
    return x + self.mlp(residual_norm(x, self.mlp_norm[...], self.eps))


class HybridDecoder(nnx.Module):
  """A decoder of Gated DeltaNet and gated attention layers (Qwen3.5 text).

  It holds parameters only: states, keys and values live in pools that are
  passed in and returned. Apply `jax.jit`, `jax.grad` and the like to functions
  of it.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> model.embedding.shape
    (512, 64)
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    dtype = jnp.dtype(config.dtype)
    shape = (config.vocab_size, config.width)
    normal = nnx.initializers.normal(config.width**-0.5)
    self.config = config
    self.embedding = nnx.Param(normal(rngs.params(), shape, dtype))
    self.layers = nnx.List(
      [DecoderLayer(config, kind, rngs=rngs) for kind in config.layer_types]
    )
    self.norm = nnx.Param(jnp.zeros(config.width, dtype))
    if not config.tie_embeddings:
      self.unembedding = nnx.Param(normal(rngs.params(), shape, dtype))

  def init_pools(self, *, slots: int, pages: int) -> Pools:
    """Makes pools of zeros, one entry per layer.

    Args:
      slots: How many state checkpoints; one number names a slot in every layer.
      pages: How many pages; one number names a page in every layer.
    """
    chunk = self.config.chunk
    return tuple(
      layer.mixer.init_pools(slots=slots, pages=pages, chunk=chunk)
      for layer in self.layers
    )

  def __call__(
    self,
    tokens: Int32[Array, "n c"],
    pools: Pools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], Pools]:
    """Runs n packed chunks through all layers.

    Args:
      tokens: Ids; padding may be any valid id.
      pools: Donated: the result takes their memory and holds the captures.
      chunks: What each chunk reads, writes and holds.
      page_table: Pages of each request, in order.

    Returns:
      What enters the final norm and the head, and the pools.
    """
    x, updated = self.embedding[...][tokens], []
    kinds = self.config.layer_types
    for kind, layer, pool in zip(kinds, self.layers, pools, strict=True):
      with jax.named_scope(kind):
        x, pool = layer(x, pool, chunks, page_table)
      updated.append(pool)
    return x, tuple(updated)

  def step(
    self,
    tokens: Int32[Array, "b"],
    pools: Pools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], Pools]:
    """Runs one token of b running sequences through all layers.

    Args:
      tokens: Ids; a free row may hold any valid id.
      pools: Donated: the result takes their memory.
      rows: What each row reads and writes.
      page_table: Pages of each sequence, in order.

    Returns:
      What enters the final norm and the head, and the pools.
    """
    x, updated = self.embedding[...][tokens], []
    for layer, pool in zip(self.layers, pools, strict=True):
      x, pool = layer.step(x, pool, rows, page_table)
      updated.append(pool)
    return x, tuple(updated)

  def head(self, hidden: at.Hidden) -> at.Logits:
    """Applies the final norm and computes logits in float32.

    Args:
      hidden: `head_rows` gathered rows of what the layers returned.
    """
    c = self.config
    hidden = residual_norm(hidden, self.norm[...], c.eps)
    weight = self.embedding if c.tie_embeddings else self.unembedding
    logits = jnp.einsum(
      "rd,vd->rv",
      hidden,
      weight[...],
      precision=c.precision,
      preferred_element_type=jnp.float32,
    )
    return jax.lax.optimization_barrier(logits)
