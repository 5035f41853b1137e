"""RG-LRU: short convolution, a real-gated linear recurrence, gate."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.kernels.diagonal_scan import (
  diagonal_scan,
  diagonal_scan_step,
)
from sparse_prefix_jax.layers.choices import check_multiple, check_values
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

_SHARPNESS = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RGLRUConfig:
  """Static choices of an RG-LRU layer.

  Attributes:
    channels: How many it has, a multiple of heads.
    heads: Blocks of channels whose gates are made of each other.
    window: Taps w of the convolution, at least 2.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = RGLRUConfig(channels=128, heads=4)
    >>> config.keeps(64, Numerics()).slots.recurrent_state.shape
    (128,)
  """

  kind: ClassVar[str] = "rg_lru"

  channels: int
  heads: int
  window: int = 4

  def __post_init__(self) -> None:
    """Refuses counts out of their range, and channels that make no blocks."""
    check_values(self, {"window": 2})
    check_multiple(self, "channels", "heads")

  def make(self, width: int, numerics: Numerics, *, rngs: nnx.Rngs) -> "RGLRU":
    """Makes the layer, with new parameters."""
    return RGLRU(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps its states in slots, and no pages."""
    del width
    taps, dtype = (self.window - 1, self.channels), jnp.dtype(numerics.dtype)
    return BranchPools(
      slots=RGLRUState(
        recurrent_state=jax.ShapeDtypeStruct((self.channels,), jnp.float32),
        conv_state=jax.ShapeDtypeStruct(taps, dtype),
      )
    )

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections, convolution, gates and the recurrence."""
    del numerics
    gates = 4 * self.channels // self.heads
    each = 6 * width + gates + 2 * self.window + 2
    return Flops(token=self.channels * each)

  def product_widths(self) -> Mapping[str, int]:
    """Names the channels; gates are made chunk by chunk."""
    return {"channels": self.channels}


class RGLRUState(NamedTuple):
  """What an RG-LRU layer keeps in a slot; one number names both.

  Attributes:
    recurrent_state: The state of every channel, in float32 whatever the type of
      the activations. [s d]
    conv_state: The last w-1 inputs of the convolution. [s w-1 d]
  """

  recurrent_state: Float32[Array, "s d"] | jax.ShapeDtypeStruct
  conv_state: at.ConvPool | jax.ShapeDtypeStruct


class RGLRU(ExplicitModule):
  """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t), out W_out (h_t * gelu(y_t)).

  a_t = exp(-8 r_t softplus(L)); u = conv(W_x x) + b, y = W_y x; the gates r and
  i are sigmoids of u, block by block. The first token of a text is not scaled.
  (De et al., 2024.)

  Attributes:
    input_gate: The weight of i. [heads block block]
    recurrent_gate: The weight of r. [heads block block]
    rate: L, one number per channel. [d]
  """

  def __init__(
    self,
    config: RGLRUConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    self.config, self.numerics = config, numerics
    self.in_mixed = kernel(rngs, width, c.channels, dtype)
    self.in_gate = kernel(rngs, width, c.channels, dtype)
    self.in_mixed_bias = bias_row(True, c.channels, dtype)
    self.in_gate_bias = bias_row(True, c.channels, dtype)
    self.conv = taps(rngs, c.window, c.channels, dtype)
    self.conv_bias = bias_row(True, c.channels, dtype)
    block = c.channels // c.heads
    init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
    shape = (c.heads, block, block)
    self.input_gate, self.recurrent_gate = (
      nnx.Param(init(rngs.params(), shape, jnp.dtype(dtype))) for _ in range(2)
    )
    self.input_gate_bias = bias_row(True, c.channels, dtype)
    self.recurrent_gate_bias = bias_row(True, c.channels, dtype)
    # a is about 0.9 to 0.999 where the gate is half open.
    self.rate = nnx.Param(
      jnp.linspace(-8.0, -3.6, c.channels, dtype=jnp.float32)
    )
    self.out = kernel(rngs, c.channels, width, dtype)
    self.out_bias = bias_row(True, width, dtype)

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Restores, scans and captures n packed chunks.

    Args:
      x: Normalised inputs.
      pools: The slots, donated: the result takes their memory.
      chunks: What each packed chunk reads, writes and holds, and where it
        stands.
      page_table: Ignored, since a recurrent layer keeps no pages.

    Returns:
      The outputs, and the pools with the captured states.
    """
    del page_table
    mixed, gate = self._project(x)
    with jax.named_scope("convolution"):
      mixed, conv_state = causal_conv1d(
        mixed,
        self.conv[...],
        pools.slots.conv_state,
        chunks,
        implementation=self.numerics.forced_implementation,
      )
    position = (
      chunks.position[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    )
    with jax.named_scope("gates"):
      u, log_decay = map_rows(self._gates, mixed, position)
    with jax.named_scope("recurrence"):
      out, recurrent_state = diagonal_scan(
        u,
        log_decay,
        pools.slots.recurrent_state,
        chunks,
        implementation=self.numerics.forced_implementation,
      )
    with jax.named_scope("gates"):
      out = map_rows(_opened, out, gate)
    state = RGLRUState(recurrent_state, conv_state)
    return self._close(out), pools._replace(slots=state)

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
      rows: The slots that each row reads and writes, and its position.
      page_table: Ignored, since a recurrent layer keeps no pages.

    Returns:
      The outputs, and the pools with the advanced states.
    """
    del page_table
    mixed, gate = self._project(x)
    mixed, conv_state = causal_conv1d_step(
      mixed,
      self.conv[...],
      pools.slots.conv_state,
      rows.read,
      rows.write,
      implementation=self.numerics.forced_step_implementation,
    )
    u, log_decay = self._gates(mixed, rows.position)
    out, recurrent_state = diagonal_scan_step(
      u,
      log_decay,
      pools.slots.recurrent_state,
      rows.read,
      rows.write,
      implementation=self.numerics.forced_step_implementation,
    )
    out = _opened(out, gate)
    state = RGLRUState(recurrent_state, conv_state)
    return self._close(out), pools._replace(slots=state)

  def _project(self, x: Float[Array, "*rows d"]) -> tuple[Array, Array]:
    """The inputs of the convolution, and the gate of the outputs."""
    weights = self.in_mixed[...], self.in_gate[...]
    biases = self.in_mixed_bias, self.in_gate_bias
    mixed, gate = dense_each(x, weights, self.numerics, biases=biases)
    return mixed, gate

  def _close(self, out: Float[Array, "*rows inner"]) -> Array:
    return dense(out, self.out[...], self.numerics, bias=self.out_bias)

  def _gates(
    self, mixed: Float32[Array, "rows inner"], position: Int32[Array, "rows"]
  ) -> tuple[Float[Array, "rows inner"], Float32[Array, "rows inner"]]:
    """Scales and decays: what enters the recurrence, and its log decay."""
    dtype = jnp.dtype(self.numerics.dtype)
    mixed = (mixed + added_row(self.conv_bias)).astype(dtype)
    opened = self._gate(mixed, self.input_gate, self.input_gate_bias)
    closing = self._gate(mixed, self.recurrent_gate, self.recurrent_gate_bias)
    rate = jax.nn.softplus(self.rate[...])[None]
    log_decay = -_SHARPNESS * closing * rate
    scale = jnp.sqrt(-jnp.expm1(2 * log_decay))
    scale = jnp.where(position[:, None] == 0, 1.0, scale)
    entering = mixed.astype(jnp.float32) * opened * scale
    return entering.astype(dtype), log_decay

  def _gate(
    self,
    x: Float[Array, "rows inner"],
    weight: nnx.Param[Array],
    bias: nnx.Param[Array] | None,
  ) -> Float32[Array, "rows inner"]:
    """The sigmoid of a product within each block of channels."""
    # Batched products of bfloat16 with sums in float32 do not run on every CPU.
    blocks = x.reshape(x.shape[0], self.config.heads, -1).astype(jnp.float32)
    scores = jnp.einsum(
      "rhi,hio->rho",
      blocks,
      weight[...].astype(jnp.float32),
      precision=self.numerics.precision,
    )
    return jax.nn.sigmoid(scores.reshape(x.shape) + added_row(bias))


def _opened(
  out: Float32[Array, "rows inner"], gate: Float[Array, "rows inner"]
) -> Float[Array, "rows inner"]:
  """Multiplies states by the gelu of the other branch."""
  opened = jax.nn.gelu(gate.astype(jnp.float32), approximate=True)
  return (out * opened).astype(gate.dtype)
