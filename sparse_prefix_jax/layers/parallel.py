"""Several sublayers under one norm, whose outputs are added."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers.choices import check_values, is_positive
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
    in_scales: What the input of each is multiplied by; None by nothing.
    out_scales: What the output of each is multiplied by; None by nothing.

  Raises:
    ValueError: If they are no tuple of sublayers, or scales not one for each.

  Example:
    >>> from sparse_prefix_jax.layers import SwiGLUConfig
    >>> pair = ParallelConfig((SwiGLUConfig(hidden=64), SwiGLUConfig(hidden=8)))
    >>> pair.flops(2, Numerics()).token
    864
  """

  kind: ClassVar[str] = "parallel"

  subs: tuple[Sublayer, ...]
  in_scales: tuple[float, ...] | None = None
  out_scales: tuple[float, ...] | None = None

  def __post_init__(self) -> None:
    """Refuses what is no tuple of sublayers, or no scales of them."""
    check_values(self)
    if len(self.subs) < 2:
      raise ValueError(
        f"subs holds {len(self.subs)} sublayers; it must hold at least two."
      )
    for index, sub in enumerate(self.subs):
      check_sublayer(f"subs[{index}]", sub)
    for name in ("in_scales", "out_scales"):
      scales = getattr(self, name)
      if scales is not None and not self._scales_fit(scales):
        raise ValueError(
          f"{name} is {scales!r}; it must be a tuple of {len(self.subs)} "
          "finite numbers above 0, or None."
        )

  def _scales_fit(self, scales: Any) -> bool:
    """Whether there is one factor for each sublayer."""
    if not isinstance(scales, tuple) or len(scales) != len(self.subs):
      return False
    return all(map(is_positive, scales))

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
    inputs = _scaled([x] * len(self.subs), self.config.in_scales)
    return self._added(
      [
        sub(x, kept, chunks, page_table)
        for sub, x, kept in zip(
          self.subs, inputs, split_pools(pools), strict=True
        )
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
    inputs = _scaled([x] * len(self.subs), self.config.in_scales)
    return self._added(
      [
        sub.step(x, kept, rows, page_table)
        for sub, x, kept in zip(
          self.subs, inputs, split_pools(pools), strict=True
        )
      ]
    )

  def _added(
    self, results: list[tuple[Any, BranchPools]]
  ) -> tuple[Any, BranchPools]:
    """The sum of all outputs, and all pools; nothing is fused into the sum."""
    outs, pools = zip(*results, strict=True)
    outs = _scaled(list(outs), self.config.out_scales)
    total, *others = barrier(tuple(outs))
    for out in others:
      total = total + out
    return barrier(total), join_pools(pools)


def _scaled(xs: list[Any], scales: tuple[float, ...] | None) -> list[Any]:
  """Each array times its factor; a factor of 1 is no product."""
  if scales is None:
    return xs
  return [
    x if scale == 1 else barrier(x * scale)
    for x, scale in zip(xs, scales, strict=True)
  ]
