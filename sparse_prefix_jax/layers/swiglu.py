"""The gated feed-forward layer."""

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
from sparse_prefix_jax.layers.dense import bias_row, dense, dense_each, kernel
from sparse_prefix_jax.layers.feed_forward import FeedForward
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiGLUConfig:
  """Static choices of a gated feed-forward layer.

  Attributes:
    hidden: Width of its two inner products.
    activation: What the gate goes through: silu, unless another is named.
    bias: Whether its products have biases.
    gate_scale: What the gate is multiplied by before that.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> SwiGLUConfig(hidden=128).product_widths()
    {'hidden': 128}
  """

  kind: ClassVar[str] = "swiglu"

  hidden: int
  activation: str = "silu"
  bias: bool = False
  gate_scale: float = 1.0

  def __post_init__(self) -> None:
    """Refuses a width that is no count, and unknown activations."""
    check_values(self)
    check_names(self, {"activation": tuple(ACTIVATIONS)})

  def make(self, width: int, numerics: Numerics, *, rngs: nnx.Rngs) -> "SwiGLU":
    """Makes the layer, with new parameters."""
    return SwiGLU(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps nothing: every token is computed alone."""
    del width, numerics
    return BranchPools()

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts three products."""
    del numerics
    return Flops(token=6 * width * self.hidden)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of the inner products."""
    return {"hidden": self.hidden}


class SwiGLU(FeedForward):
  """Computes down(silu(gate(x)) * up(x)), the feed-forward layer.

  Attributes:
    gate: The weight of the branch that goes through silu. [d hidden]
    up: The weight of the branch that it multiplies. [d hidden]
    down: The weight that brings both back to the model width. [hidden d]
    gate_bias: Its bias, or None. [hidden]
    up_bias: Its bias, or None. [hidden]
    down_bias: Its bias, or None. [d]
  """

  def __init__(
    self,
    config: SwiGLUConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    self.config, self.numerics = config, numerics
    self.gate = kernel(rngs, width, config.hidden, numerics.dtype)
    self.up = kernel(rngs, width, config.hidden, numerics.dtype)
    self.down = kernel(rngs, config.hidden, width, numerics.dtype)
    self.gate_bias = bias_row(config.bias, config.hidden, numerics.dtype)
    self.up_bias = bias_row(config.bias, config.hidden, numerics.dtype)
    self.down_bias = bias_row(config.bias, width, numerics.dtype)

  def rows(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Computes every row alone: two rows and more give it the same bits."""
    c, weights = self.config, (self.gate, self.up)
    biases = self.gate_bias, self.up_bias
    gate, up = dense_each(x, weights, self.numerics, biases=biases)
    with jax.named_scope("activation"):
      gate = gate.astype(jnp.float32)
      gate = gate if c.gate_scale == 1 else gate * c.gate_scale
      hidden = ACTIVATIONS[c.activation](gate).astype(x.dtype) * up
    hidden = barrier(hidden)
    return dense(hidden, self.down[...], self.numerics, bias=self.down_bias)
