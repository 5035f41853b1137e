"""The feed-forward layer without a gate."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.layers.activations import ACTIVATIONS
from sparse_prefix_jax.layers.choices import check_names, check_values
from sparse_prefix_jax.layers.dense import bias_row, dense, kernel
from sparse_prefix_jax.layers.feed_forward import FeedForward
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
  """Static choices of a feed-forward layer without a gate.

  Attributes:
    hidden: Width of its inner product.
    activation: What stands between the products: the square of relu, unless
      another is named.
    bias: Whether its products have biases.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> MLPConfig(hidden=128).product_widths()
    {'hidden': 128}
  """

  kind: ClassVar[str] = "mlp"

  hidden: int
  activation: str = "relu_squared"
  bias: bool = False

  def __post_init__(self) -> None:
    """Refuses a width that is no count, and unknown activations."""
    check_values(self)
    check_names(self, {"activation": tuple(ACTIVATIONS)})

  def make(self, width: int, numerics: Numerics, *, rngs: nnx.Rngs) -> "MLP":
    """Makes the layer, with new parameters."""
    return MLP(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps nothing: every token is computed alone."""
    del width, numerics
    return BranchPools()

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts two products."""
    del numerics
    return Flops(token=4 * width * self.hidden)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of the inner product."""
    return {"hidden": self.hidden}


class MLP(FeedForward):
  """Computes down(f(up(x))), the feed-forward layer of one inner product.

  Attributes:
    up: The weight of the inner product. [d hidden]
    down: The weight that leads back to the model width. [hidden d]
    up_bias: Its bias, or None. [hidden]
    down_bias: Its bias, or None. [d]
  """

  def __init__(
    self,
    config: MLPConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    self.config, self.numerics = config, numerics
    self.up = kernel(rngs, width, config.hidden, numerics.dtype)
    self.down = kernel(rngs, config.hidden, width, numerics.dtype)
    self.up_bias = bias_row(config.bias, config.hidden, numerics.dtype)
    self.down_bias = bias_row(config.bias, width, numerics.dtype)

  def rows(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Computes every row alone: two rows and more give it the same bits."""
    c = self.config
    up = dense(x, self.up[...], self.numerics, bias=self.up_bias)
    with jax.named_scope("activation"):
      hidden = ACTIVATIONS[c.activation](up.astype(jnp.float32))
      hidden = hidden.astype(x.dtype)
    hidden = barrier(hidden)
    return dense(hidden, self.down[...], self.numerics, bias=self.down_bias)
