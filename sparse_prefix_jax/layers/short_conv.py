"""A gated short convolution: the last few tokens are all that it keeps."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.layers.choices import check_values
from sparse_prefix_jax.layers.dense import (
  added_row,
  bias_row,
  dense,
  dense_each,
  kernel,
  taps,
)
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortConvConfig:
  """Static choices of a gated short convolution.

  Attributes:
    channels: How many it has.
    window: Taps w of the convolution, at least 2.
    bias: Whether its projections and the convolution have biases.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = ShortConvConfig(channels=128)
    >>> config.keeps(64, Numerics()).slots.conv_state.shape
    (2, 128)
  """

  kind: ClassVar[str] = "short_conv"

  channels: int
  window: int = 3
  bias: bool = False

  def __post_init__(self) -> None:
    """Refuses counts out of their range."""
    check_values(self, {"window": 2})

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "ShortConv":
    """Makes the layer, with new parameters."""
    return ShortConv(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps the last inputs in slots, and no pages."""
    del width
    taps, dtype = (self.window - 1, self.channels), jnp.dtype(numerics.dtype)
    return BranchPools(slots=ShortConvState(jax.ShapeDtypeStruct(taps, dtype)))

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections and the convolution."""
    del numerics
    return Flops(token=self.channels * (8 * width + 2 * self.window + 2))

  def product_widths(self) -> Mapping[str, int]:
    """Names the channels."""
    return {"channels": self.channels}


class ShortConvState(NamedTuple):
  """What a short convolution keeps in a slot.

  Attributes:
    conv_state: The last w-1 inputs of the convolution. [s w-1 d]
  """

  conv_state: at.ConvPool | jax.ShapeDtypeStruct


class ShortConv(ExplicitModule):
  """W_out (c_t * conv(b_t * u_t)), with b, c and u products of the input.

  Attributes:
    in_enter: The weight of b, which opens what enters. [width d]
    in_leave: The weight of c, which opens what leaves. [width d]
    in_mixed: The weight of u. [width d]
  """

  def __init__(
    self,
    config: ShortConvConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    self.config, self.numerics = config, numerics
    self.in_enter = kernel(rngs, width, c.channels, dtype)
    self.in_leave = kernel(rngs, width, c.channels, dtype)
    self.in_mixed = kernel(rngs, width, c.channels, dtype)
    self.in_enter_bias = bias_row(c.bias, c.channels, dtype)
    self.in_leave_bias = bias_row(c.bias, c.channels, dtype)
    self.in_mixed_bias = bias_row(c.bias, c.channels, dtype)
    self.conv = taps(rngs, c.window, c.channels, dtype)
    self.conv_bias = bias_row(c.bias, c.channels, dtype)
    self.out = kernel(rngs, c.channels, width, dtype)
    self.out_bias = bias_row(c.bias, width, dtype)

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Restores, convolves and captures n packed chunks.

    Args:
      x: Normalised inputs.
      pools: The slots, donated: the result takes their memory.
      chunks: What each packed chunk reads, writes and holds.
      page_table: Ignored, since it keeps no pages.

    Returns:
      The outputs, and the pools with the captured inputs.
    """
    del page_table
    mixed, leave = self._project(x)
    with jax.named_scope("convolution"):
      mixed, conv_state = causal_conv1d(
        mixed,
        self.conv[...],
        pools.slots.conv_state,
        chunks,
        implementation=self.numerics.forced_implementation,
      )
    out = map_rows(self._opened, mixed, leave)
    return self._close(out), pools._replace(slots=ShortConvState(conv_state))

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Runs one token of each of b running sequences through the layer.

    Args:
      x: Normalised inputs, one row per sequence.
      pools: The slots, donated: the result takes their memory.
      rows: The slots that each row reads and writes.
      page_table: Ignored, since it keeps no pages.

    Returns:
      The outputs, and the pools with the last inputs.
    """
    del page_table
    mixed, leave = self._project(x)
    mixed, conv_state = causal_conv1d_step(
      mixed,
      self.conv[...],
      pools.slots.conv_state,
      rows.read,
      rows.write,
      implementation=self.numerics.forced_step_implementation,
    )
    out = self._close(self._opened(mixed, leave))
    return out, pools._replace(slots=ShortConvState(conv_state))

  def _project(self, x: Float[Array, "*rows d"]) -> tuple[Array, Array]:
    """What the convolution reads, opened, and what opens its outputs."""
    weights = self.in_enter[...], self.in_leave[...], self.in_mixed[...]
    biases = self.in_enter_bias, self.in_leave_bias, self.in_mixed_bias
    enter, leave, mixed = dense_each(x, weights, self.numerics, biases=biases)
    return barrier(enter * mixed), leave

  def _opened(
    self,
    mixed: Float32[Array, "rows inner"],
    leave: Float[Array, "rows inner"],
  ) -> Float[Array, "rows inner"]:
    """Multiplies what was convolved by what lets it leave."""
    mixed = (mixed + added_row(self.conv_bias)).astype(leave.dtype)
    return mixed * leave

  def _close(self, out: Float[Array, "*rows inner"]) -> Array:
    return dense(out, self.out[...], self.numerics, bias=self.out_bias)
