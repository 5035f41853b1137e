"""Mamba: short convolution, a state for every channel, gate."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

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
from sparse_prefix_jax.layers.choices import check_names, check_values
from sparse_prefix_jax.layers.dense import (
  added_row,
  bias_row,
  dense,
  dense_each,
  kernel,
  product,
  taps,
)
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.normalization import scaled_rms_norm
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig:
  """Static choices of a Mamba layer.

  Attributes:
    inner_width: How many channels d it has.
    state_width: Numbers e that a channel keeps.
    rank: Width of what the steps are made of.
    window: Taps w of the convolution, at least 2.
    bias: Whether the projections in and out have biases.
    conv_bias: Whether the convolution has one.
    part_norm: How steps, B and C are normalised before they are used: "none",
      "plain" without a weight, or "weighted".
    eps: What these norms add to the mean square.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = MambaConfig(inner_width=128, state_width=16, rank=4)
    >>> config.keeps(64, Numerics()).slots.recurrent_state.shape
    (128, 16)
  """

  kind: ClassVar[str] = "mamba"

  inner_width: int
  state_width: int
  rank: int
  window: int = 4
  bias: bool = False
  conv_bias: bool = True
  part_norm: str = "none"
  eps: float = 1e-6

  def __post_init__(self) -> None:
    """Refuses counts out of their range, and unknown norms."""
    check_values(self, {"window": 2})
    check_names(self, {"part_norm": ("none", "plain", "weighted")})

  @property
  def part_widths(self) -> tuple[int, int, int]:
    """Columns of what steps are made of, of B and of C."""
    return self.rank, self.state_width, self.state_width

  def make(self, width: int, numerics: Numerics, *, rngs: nnx.Rngs) -> "Mamba":
    """Makes the layer, with new parameters."""
    return Mamba(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps its states in slots, and no pages."""
    del width
    state = (self.inner_width, self.state_width)
    taps, dtype = (self.window - 1, self.inner_width), jnp.dtype(numerics.dtype)
    return BranchPools(
      slots=MambaState(
        recurrent_state=jax.ShapeDtypeStruct(state, jnp.float32),
        conv_state=jax.ShapeDtypeStruct(taps, dtype),
      )
    )

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections, convolution and the recurrence."""
    del numerics
    inner = self.inner_width
    products = 2 * inner * (3 * width + sum(self.part_widths) + self.rank)
    return Flops(
      token=products + 2 * self.window * inner + 6 * inner * self.state_width
    )

  def product_widths(self) -> Mapping[str, int]:
    """Names the channels; steps, B and C are made chunk by chunk."""
    return {"inner_width": self.inner_width}


class MambaState(NamedTuple):
  """What a Mamba layer keeps in a slot; one number names both.

  Attributes:
    recurrent_state: The states of every channel, in float32 whatever the type
      of the activations. [s d e]
    conv_state: The last w-1 inputs of the convolution. [s w-1 d]
  """

  recurrent_state: Float32[Array, "s d e"] | jax.ShapeDtypeStruct
  conv_state: at.ConvPool | jax.ShapeDtypeStruct


class _Inputs(NamedTuple):
  """The inputs of the recurrence in its order, and of what skips it."""

  x: Float[Array, "rows d"]
  log_decay: Float32[Array, "rows d"]
  b: Float[Array, "rows e"]
  c: Float[Array, "rows e"]
  skipped: Float32[Array, "rows d"]


class Mamba(ExplicitModule):
  """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = h_t C_t + D u_t.

  A = -exp(A_log), a number for each channel and state; u = silu(conv(W x));
  steps, B and C are products of u, dt_t = softplus(W_dt r_t + dt_bias); the
  output is W_out (y_t * silu(W_z x_t)). (Gu and Dao, 2023.)
  """

  def __init__(
    self,
    config: MambaConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    inner = c.inner_width
    self.config, self.numerics = config, numerics
    self.in_mixed = kernel(rngs, width, inner, dtype)
    self.in_gate = kernel(rngs, width, inner, dtype)
    self.in_mixed_bias = bias_row(c.bias, inner, dtype)
    self.in_gate_bias = bias_row(c.bias, inner, dtype)
    self.conv = taps(rngs, c.window, inner, dtype)
    self.conv_bias = bias_row(c.conv_bias, inner, dtype)
    self.parts = kernel(rngs, inner, sum(c.part_widths), dtype)
    if c.part_norm == "weighted":
      self.part_norm = nnx.Param(jnp.ones(sum(c.part_widths), jnp.dtype(dtype)))
    self.in_step = kernel(rngs, c.rank, inner, dtype)
    # Steps of about 0.01, as the softplus makes them.
    self.step_bias = nnx.Param(jnp.full(inner, -4.6, jnp.float32))
    rate = jnp.arange(1, c.state_width + 1, dtype=jnp.float32)
    rates = jnp.broadcast_to(jnp.log(rate)[None], (inner, c.state_width))
    self.log_rate = nnx.Param(jnp.array(rates))
    self.direct = nnx.Param(jnp.ones(inner, jnp.float32))
    self.out = kernel(rngs, inner, width, dtype)
    self.out_bias = bias_row(c.bias, width, dtype)

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
      chunks: What each packed chunk reads, writes and holds.
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
    with jax.named_scope("parts"):
      u, log_decay, b, c, skipped = map_rows(self._parts, mixed)
    with jax.named_scope("recurrence"):
      out, recurrent_state = diagonal_scan(
        u,
        log_decay,
        pools.slots.recurrent_state,
        chunks,
        rate=jnp.exp(self.log_rate[...]),
        b=b,
        c=c,
        implementation=self.numerics.forced_implementation,
      )
    with jax.named_scope("gate"):
      out = map_rows(_gated, out, skipped, gate)
    state = MambaState(recurrent_state, conv_state)
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
      rows: The slots that each row reads and writes.
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
    u, log_decay, b, c, skipped = self._parts(mixed)
    out, recurrent_state = diagonal_scan_step(
      u,
      log_decay,
      pools.slots.recurrent_state,
      rows.read,
      rows.write,
      rate=jnp.exp(self.log_rate[...]),
      b=b,
      c=c,
      implementation=self.numerics.forced_step_implementation,
    )
    out = _gated(out, skipped, gate)
    state = MambaState(recurrent_state, conv_state)
    return self._close(out), pools._replace(slots=state)

  def _project(self, x: Float[Array, "*rows d"]) -> tuple[Array, Array]:
    """The inputs of the convolution, and the gate."""
    weights = self.in_mixed[...], self.in_gate[...]
    biases = self.in_mixed_bias, self.in_gate_bias
    mixed, gate = dense_each(x, weights, self.numerics, biases=biases)
    return mixed, gate

  def _close(self, out: Float[Array, "*rows inner"]) -> Array:
    return dense(out, self.out[...], self.numerics, bias=self.out_bias)

  def _parts(self, mixed: Float32[Array, "rows inner"]) -> _Inputs:
    """Makes steps, B and C from convolved projections, and what they weigh."""
    c, dtype = self.config, jnp.dtype(self.numerics.dtype)
    precision = self.numerics.precision
    mixed = mixed + added_row(self.conv_bias)
    mixed = jax.nn.silu(mixed).astype(dtype)
    parts = product(mixed, self.parts[...], precision).astype(dtype)
    ends = [c.rank, c.rank + c.state_width]
    step, b, c_out = jnp.split(parts, ends, axis=-1)
    if c.part_norm != "none":
      weights = jnp.split(self._part_weights(), ends)
      step, b, c_out = (
        scaled_rms_norm(part, weight, c.eps)
        for part, weight in zip((step, b, c_out), weights, strict=True)
      )
    step = product(step, self.in_step[...], precision)
    step = jax.nn.softplus(step + self.step_bias[...][None])
    wide = mixed.astype(jnp.float32)
    skipped = wide * self.direct[...][None]
    return _Inputs((wide * step).astype(dtype), -step, b, c_out, skipped)

  def _part_weights(self) -> Array:
    """The weights of the norms of steps, B and C, one behind the other."""
    if self.config.part_norm == "weighted":
      return self.part_norm[...]
    columns = sum(self.config.part_widths)
    return jnp.ones(columns, jnp.dtype(self.numerics.dtype))


def _gated(
  out: Float32[Array, "rows inner"],
  skipped: Float32[Array, "rows inner"],
  gate: Float[Array, "rows inner"],
) -> Float[Array, "rows inner"]:
  """Adds what skips the recurrence, and opens both."""
  opened = (out + skipped) * jax.nn.silu(gate.astype(jnp.float32))
  return opened.astype(gate.dtype)
