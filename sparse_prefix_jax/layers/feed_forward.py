"""What feed-forward layers share: every row is computed alone."""

import abc

from jaxtyping import Array, Float

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.sublayer import BranchPools


class FeedForward(ExplicitModule):
  """A layer that keeps nothing: chunks and steps are rows to it."""

  @abc.abstractmethod
  def rows(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Computes every row alone: two rows and more give it the same bits.

    Args:
      x: Normalised inputs.
    """

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Computes every token of n packed chunks alone.

    Args:
      x: Normalised inputs.
      pools: Empty, and returned as they are.
      chunks: Ignored, since nothing is read or written.
      page_table: Ignored, since a feed-forward layer keeps no pages.

    Returns:
      The outputs, and the pools.
    """
    del chunks, page_table
    return self.rows(x), pools

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Computes one token of each of b running sequences.

    Args:
      x: Normalised inputs, one row per sequence.
      pools: Empty, and returned as they are.
      rows: Ignored, since nothing is read or written.
      page_table: Ignored, since a feed-forward layer keeps no pages.

    Returns:
      The outputs, and the pools.
    """
    del rows, page_table
    return self.rows(x), pools
