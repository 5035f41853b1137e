"""Several sublayers under one norm, whose outputs are added."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers.choices import check_values
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import (
  BranchPools,
  Flops,
  Sublayer,
  check_sublayer,
  join_pools,
  split_pools,
)


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """Static choices of sublayers that stand side by side.

  Attributes:
    subs: The sublayers, at least two; their outputs are added in this order.

  Raises:
    ValueError: If they are no tuple of sublayers.

  Example:
    >>> from sparse_prefix_jax.layers import SwiGLUConfig
    >>> pair = ParallelConfig((SwiGLUConfig(hidden=64), SwiGLUConfig(hidden=8)))
    >>> pair.flops(2, Numerics()).token
    864
  """

  kind: ClassVar[str] = "parallel"

  subs: tuple[Sublayer, ...]

  def __post_init__(self) -> None:
    """Refuses what is no tuple of sublayers."""
    check_values(self)
    if len(self.subs) < 2:
      raise ValueError(
        f"subs holds {len(self.subs)} sublayers; it must hold at least two."
      )
    for index, sub in enumerate(self.subs):
      check_sublayer(f"subs[{index}]", sub)

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "Parallel":
    """Makes all sublayers in order, with new parameters."""
    return Parallel(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps what all of them keep."""
    return join_pools([sub.keeps(width, numerics) for sub in self.subs])

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts what all of them compute."""
    counts = [sub.flops(width, numerics) for sub in self.subs]
    return Flops(sum(c.token for c in counts), sum(c.pair for c in counts))

  def product_widths(self) -> Mapping[str, int]:
    """Names the products of all of them, each with its sublayer."""
    return {
      f"{name} of subs[{index}]": width
      for index, sub in enumerate(self.subs)
      for name, width in sub.product_widths().items()
    }


class Parallel(ExplicitModule):
  """Computes the sum of several sublayers of one input.

  Attributes:
    subs: The modules of the sublayers, in order.
  """

  def __init__(
    self,
    config: ParallelConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    self.config, self.numerics = config, numerics
    self.subs = nnx.List(
      [sub.make(width, numerics, rngs=rngs) for sub in config.subs]
    )

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Runs n packed chunks through all sublayers.

    Args:
      x: Normalised inputs of each.
      pools: What they keep, donated: the result takes its memory.
      chunks: What each chunk reads, writes and holds.
      page_table: Pages of each request, in order.

    Returns:
      The sum of the outputs, and the pools with what was captured.
    """
    return _added(
      [
        sub(x, kept, chunks, page_table)
        for sub, kept in zip(self.subs, split_pools(pools), strict=True)
      ]
    )

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Runs one token of each of b running sequences through all sublayers.

    Args:
      x: Normalised inputs, one row per sequence.
      pools: What they keep, donated: the result takes its memory.
      rows: What each row reads and writes.
      page_table: Pages of each sequence, in order.

    Returns:
      The sum of the outputs, and the pools with the tokens' states or keys.
    """
    return _added(
      [
        sub.step(x, kept, rows, page_table)
        for sub, kept in zip(self.subs, split_pools(pools), strict=True)
      ]
    )


def _added(results: list[tuple[Any, BranchPools]]) -> tuple[Any, BranchPools]:
  """The sum of all outputs, and all pools; nothing is fused into the sum."""
  outs, pools = zip(*results, strict=True)
  total, *others = lax.optimization_barrier(outs)
  for out in others:
    total = total + out
  return lax.optimization_barrier(total), join_pools(pools)
