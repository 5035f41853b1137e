"""HybridDecoder: branches in a row, states and pages passed in and out."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers import BranchPools
from sparse_prefix_jax.layers.normalization import residual_norm
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.sizes import kept_shapes

Pools: TypeAlias = tuple[BranchPools, ...]
"""One entry per branch: its slots and its pages, either of which may be none.
"""


def map_pools(
  pools: Pools,
  on_slots: Callable[[Any], Any],
  on_pages: Callable[[Any], Any],
) -> Pools:
  """Applies one function to all arrays of slots, another to those of pages."""
  return tuple(kept.map(on_slots, on_pages) for kept in pools)


class HybridDecoder(nnx.Module):
  """A decoder of residual branches, recurrent, of attention and others.

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
    numerics = config.numerics
    dtype = jnp.dtype(numerics.dtype)
    shape = (config.vocab_size, config.width)
    normal = nnx.initializers.normal(config.width**-0.5)
    self.config = config
    self.embedding = nnx.Param(normal(rngs.params(), shape, dtype))
    self.branches = nnx.List(
      [
        branch.make(config.width, numerics, rngs=rngs)
        for branch in config.branches
      ]
    )
    self.norm = config.final_norm.weight(config.width, numerics.dtype)
    if not config.tie_embeddings:
      self.unembedding = nnx.Param(normal(rngs.params(), shape, dtype))

  def init_pools(self, *, slots: int, pages: int) -> Pools:
    """Makes pools of zeros, one entry per branch.

    Args:
      slots: How many state checkpoints; one number names a slot everywhere.
      pages: How many pages; one number names a page everywhere.
    """
    return tuple(
      kept.zeros(slots=slots, pages=pages) for kept in kept_shapes(self.config)
    )

  def __call__(
    self,
    tokens: Int32[Array, "n c"],
    pools: Pools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], Pools]:
    """Runs n packed chunks through all branches.

    Args:
      tokens: Ids; padding may be any valid id.
      pools: Donated: the result takes their memory and holds the captures.
      chunks: What each chunk reads, writes and holds.
      page_table: Pages of each request, in order.

    Returns:
      What enters the final norm and the head, and the pools.
    """
    x, updated = self._embedded(tokens), []
    for branch, kept in zip(self.branches, pools, strict=True):
      x, kept = branch(x, kept, chunks, page_table)
      updated.append(kept)
    return x, tuple(updated)

  def step(
    self,
    tokens: Int32[Array, "b"],
    pools: Pools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], Pools]:
    """Runs one token of b running sequences through all branches.

    Args:
      tokens: Ids; a free row may hold any valid id.
      pools: Donated: the result takes their memory.
      rows: What each row reads and writes.
      page_table: Pages of each sequence, in order.

    Returns:
      What enters the final norm and the head, and the pools.
    """
    x, updated = self._embedded(tokens), []
    for branch, kept in zip(self.branches, pools, strict=True):
      x, kept = branch.step(x, kept, rows, page_table)
      updated.append(kept)
    return x, tuple(updated)

  def head(self, hidden: at.Hidden) -> at.Logits:
    """Applies the final norm and computes logits in float32.

    Args:
      hidden: `head_rows` gathered rows of what the branches returned.
    """
    c = self.config
    hidden = residual_norm(hidden, self.norm[...], c.final_norm)
    weight = self.embedding if c.tie_embeddings else self.unembedding
    logits = jnp.einsum(
      "rd,vd->rv",
      hidden,
      weight[...],
      precision=c.numerics.precision,
      preferred_element_type=jnp.float32,
    )
    if c.logits_scale != 1:
      logits = jax.lax.optimization_barrier(logits) * c.logits_scale
    return jax.lax.optimization_barrier(logits)

  def _embedded(self, tokens: Int32[Array, "*rows"]) -> Array:
    """Looks up embeddings; a factor of 1 is no product."""
    x, scale = self.embedding[...][tokens], self.config.embedding_scale
    return x if scale == 1 else x * scale
