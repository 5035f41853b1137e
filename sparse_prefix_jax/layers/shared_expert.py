"""The expert that computes every token, as far as its gate lets it."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.layers.choices import check_values
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops
from sparse_prefix_jax.layers.swiglu import SwiGLU, SwiGLUConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedExpertConfig:
  """Static choices of a shared expert with a gate of one channel.

  A shared expert without a gate is a `SwiGLUConfig`.

  Attributes:
    hidden: Width of its two inner products.

  Raises:
    ValueError: If the width is no count.

  Example:
    >>> SharedExpertConfig(hidden=128).flops(64, Numerics()).token
    49280
  """

  kind: ClassVar[str] = "shared_expert"

  hidden: int

  def __post_init__(self) -> None:
    """Refuses a width that is no count."""
    check_values(self)

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "SharedExpert":
    """Makes the layer, with new parameters."""
    return SharedExpert(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps nothing: every token is computed alone."""
    del width, numerics
    return BranchPools()

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts three products, and the gate."""
    del numerics
    return Flops(token=6 * width * self.hidden + 2 * width)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of the inner products; the gate runs by chunks."""
    return {"hidden": self.hidden}


class SharedExpert(ExplicitModule):
  """Computes sigmoid(w x) * down(silu(gate(x)) * up(x)).

  Attributes:
    expert: The feed-forward layer.
    opening: The weight w of the gate that opens it. [d]
  """

  def __init__(
    self,
    config: SharedExpertConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    self.config, self.numerics = config, numerics
    inner = SwiGLUConfig(hidden=config.hidden)
    self.expert = SwiGLU(inner, width, numerics, rngs=rngs)
    normal = nnx.initializers.normal(width**-0.5)
    dtype = jnp.dtype(numerics.dtype)
    self.opening = nnx.Param(normal(rngs.params(), (width,), dtype))

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
      page_table: Ignored, since nothing is kept.

    Returns:
      The outputs, and the pools.
    """
    del chunks, page_table
    return map_rows(self._opened, x, self.expert.rows(x)), pools

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
      page_table: Ignored, since nothing is kept.

    Returns:
      The outputs, and the pools.
    """
    del rows, page_table
    return self._opened(x, self.expert.rows(x)), pools

  def _opened(
    self, x: Float[Array, "rows d"], out: Float[Array, "rows d"]
  ) -> Float[Array, "rows d"]:
    """Multiplies each row by its gate, a sum over its own channels."""
    x, out = barrier((x, out))
    weight = self.opening[...].astype(jnp.float32)[None]
    score = jnp.sum(x.astype(jnp.float32) * weight, axis=-1, keepdims=True)
    opened = jax.nn.sigmoid(score) * out.astype(jnp.float32)
    return barrier(opened.astype(out.dtype))
