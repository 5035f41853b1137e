"""HybridDecoder: branches in a row, states and pages passed in and out."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.checks import check_axes
from sparse_prefix_jax.kernels.chunks import Captures, Chunks, Rows, rounded
from sparse_prefix_jax.kernels.slot_checks import concrete, widened
from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.layers import BranchPools, ResidualBranch, explicit
from sparse_prefix_jax.layers.dense import product_of_few
from sparse_prefix_jax.layers.explicit import ExplicitCarry, ExplicitScan
from sparse_prefix_jax.layers.normalization import residual_norm
from sparse_prefix_jax.layers.sublayer import join_pools, split_pools
from sparse_prefix_jax.layers.wide_gradients import looked_up
from sparse_prefix_jax.models.config import ModelConfig, check_config_kind
from sparse_prefix_jax.models.sizes import kept_shapes

Pools: TypeAlias = tuple[BranchPools, ...]
"""One entry per branch: its slots and its pages, either of which may be none.
"""


_Tokens: TypeAlias = Int32[Array, "..."] | Int32[np.ndarray, "..."]


def map_pools(
  pools: Pools,
  on_slots: Callable[[Any], Any],
  on_pages: Callable[[Any], Any],
) -> Pools:
  """Applies one function to all arrays of slots, another to those of pages."""
  return tuple(kept.map(on_slots, on_pages) for kept in pools)


class Branches(NamedTuple):
  """The branches of a model as one module: slots and pages are tuples.

  Attributes:
    branches: The residual branches, in order.
  """

  branches: tuple[ResidualBranch, ...]

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Runs n packed chunks through all branches."""
    kept = split_pools(pools)
    x, kept = _run(self.branches, x, tuple(kept), chunks, page_table)
    return x, join_pools(kept)

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Runs one token of b running sequences through all branches."""
    kept = split_pools(pools)
    x, kept = _step(self.branches, x, tuple(kept), rows, page_table)
    return x, join_pools(kept)


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
    check_config_kind(config)
    check_class("rngs", rngs, nnx.Rngs, "of flax.nnx")
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
    x = self._embedded(tokens)
    return _run(tuple(self.branches), x, pools, chunks, page_table)

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
    x = self._embedded(tokens)
    return _step(tuple(self.branches), x, pools, rows, page_table)

  def initialize_carry(
    self, batch: int, capacity: int | None = None
  ) -> ExplicitCarry:
    """Makes the carry of empty requests, for `scan` and `cell`.

    Args:
      batch: How many requests.
      capacity: Tokens that there is room for; None for `max_length`.

    Raises:
      ValueError: If the batch is no count, or the capacity is out of its range.

    Example:
      >>> from sparse_prefix_jax import preset
      >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
      >>> carry = model.initialize_carry(batch=2, capacity=256)
      >>> carry.pages[2].keys.shape
      (2, 4, 64, 2, 32)
    """
    kept = join_pools(kept_shapes(self.config))
    return explicit.empty_carry(kept, self.config.numerics, batch, capacity)

  def scan(
    self,
    carry: ExplicitCarry,
    tokens: _Tokens,
    length: explicit.Lengths | None = None,
    capture_at: Captures = (),
  ) -> ExplicitScan:
    """Takes t tokens of b requests, with the bits of prefill and no cache.

    It is pure, and differentiates in the parameters and in the carry. Under a
    transformation values are not known and cannot be refused: a request that
    would be refused is NaN then, and so is a capture; of an id outside of the
    vocabulary its chunk and what follows.

    Args:
      carry: Every position is a lattice point, a multiple of the chunk length.
      tokens: Ids; padding may be any valid id. [b t]
      length: Real tokens of each request; None for t. What follows is padding.
      capture_at: Numbers of tokens of this call after which to hand out the
        slots: multiples of the chunk length, distinct.

    Returns:
      The carry after the last token, what enters the head, and the captured
      slots.

    Raises:
      ValueError: If arrays do not belong together, a position is off the
        lattice, tokens do not fit into the capacity, or an id, a length or a
        capture is out of its range.

    Example:
      >>> from sparse_prefix_jax import preset
      >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
      >>> carry = model.initialize_carry(batch=1, capacity=128)
      >>> tokens = jnp.arange(100)[None]
      >>> carry, hidden, captured = model.scan(carry, tokens, capture_at=(64,))
      >>> carry.position.tolist(), hidden.shape
      ([100], (1, 100, 64))
    """
    explicit.check_kept(carry, join_pools(kept_shapes(self.config)))
    check_axes("scan", tokens=(tokens, "b t"))
    x, branches = self._embed(tokens), Branches(tuple(self.branches))
    numerics = self.config.numerics
    return explicit.scan(branches, numerics, carry, x, length, capture_at)

  def cell(
    self, carry: ExplicitCarry, tokens: _Tokens
  ) -> tuple[ExplicitCarry, Float[Array, "b d"]]:
    """Takes one token of b requests, with the bits of a decode step.

    Args:
      carry: The carry before the token, at any position.
      tokens: Ids. [b]

    Returns:
      The carry after it, which can be scanned from at lattice points only, and
      what enters the head.

    Raises:
      ValueError: If arrays do not belong together, or the capacity is full.
    """
    explicit.check_kept(carry, join_pools(kept_shapes(self.config)))
    check_axes("cell", tokens=(tokens, "b"))
    x, branches = self._embed(tokens), Branches(tuple(self.branches))
    return explicit.cell(branches, self.config.numerics, carry, x)

  def _embedded(self, tokens: Int32[Array, "*rows"]) -> Array:
    """Looks up embeddings; a factor of 1 is no product.

    Any other is rounded: `scan` has the embeddings before its program begins.
    """
    x = looked_up(self.embedding[...], tokens)
    scale = self.config.embedding_scale
    return x if scale == 1 else rounded(lambda x: x * scale, x)

  def _embed(self, tokens: _Tokens) -> Float[Array, "*rows d"]:
    """The embeddings of ids; known ones outside of the vocabulary are refused.

    Indexing would take the nearest id for them, in silence; of those that are
    not known it is NaN.
    """
    ids, size = concrete("tokens", tokens), self.config.vocab_size
    tokens = widened(tokens)
    if ids is None:
      known = (tokens >= 0) & (tokens < size)
      x = self._embedded(jnp.where(known, tokens, 0))
      return jnp.where(known[..., None], x, jnp.nan)
    wrong = ids[(ids < 0) | (ids >= size)]
    if wrong.size:
      raise ValueError(
        f"tokens holds {wrong[0]}; an id is 0 to {size - 1}, of vocab_size."
      )
    return self._embedded(tokens)

  def head(self, hidden: at.Hidden) -> at.Logits:
    """Applies the final norm and computes logits in float32.

    Args:
      hidden: `head_rows` gathered rows of what the branches returned.

    Raises:
      ValueError: If it is no array of rows of the model's width.
    """
    c = self.config
    check_axes("head", norm=(self.norm[...], "d"), hidden=(hidden, "rows d"))
    hidden = residual_norm(hidden, self.norm[...], c.final_norm)
    weight = self.embedding if c.tie_embeddings else self.unembedding
    logits = product_of_few(hidden, weight[...], c.numerics.precision)
    if c.logits_scale != 1:
      logits = barrier(logits) * c.logits_scale
    if c.logits_cap is not None:
      logits = barrier(logits)
      logits = c.logits_cap * jnp.tanh(logits / c.logits_cap)
    return barrier(logits)


def _run(
  branches: tuple[ResidualBranch, ...],
  x: Float[Array, "n c d"],
  pools: Pools,
  chunks: Chunks,
  page_table: at.PageTable,
) -> tuple[Float[Array, "n c d"], Pools]:
  """Runs packed chunks through all branches."""
  updated = []
  for branch, kept in zip(branches, pools, strict=True):
    x, kept = branch(x, kept, chunks, page_table)
    updated.append(kept)
  return x, tuple(updated)


def _step(
  branches: tuple[ResidualBranch, ...],
  x: Float[Array, "b d"],
  pools: Pools,
  rows: Rows,
  page_table: at.PageTable,
) -> tuple[Float[Array, "b d"], Pools]:
  """Runs one token of each row through all branches."""
  updated = []
  for branch, kept in zip(branches, pools, strict=True):
    x, kept = branch.step(x, kept, rows, page_table)
    updated.append(kept)
  return x, tuple(updated)
