"""Gated DeltaNet: short convolution, gated delta rule, gated norm."""

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
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule,
  gated_delta_rule_projected_step,
  project_heads,
)
from sparse_prefix_jax.layers.choices import check_multiple, check_values
from sparse_prefix_jax.layers.dense import (
  dense,
  dense_each,
  kernel,
  product,
  taps,
)
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.normalization import gated_rms_norm
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
  """Static choices of a Gated DeltaNet layer.

  Attributes:
    key_heads: Heads h of queries and keys.
    value_heads: Heads hv of values, a multiple of key_heads.
    key_width: Width k of a query or key head.
    value_width: Width v of a value head.
    window: Taps w of the convolution, at least 2.
    eps: What the gated norm adds to the mean square.
    beta_scale: What beta, a sigmoid, is multiplied by: with 2 a token may also
      turn a direction of the state around.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = GatedDeltaNetConfig(
    ...   key_heads=2, value_heads=4, key_width=32, value_width=32
    ... )
    >>> config.keeps(64, Numerics()).slots.recurrent_state.shape
    (4, 32, 32)
  """

  kind: ClassVar[str] = "gated_delta_net"

  key_heads: int
  value_heads: int
  key_width: int
  value_width: int
  window: int = 4
  eps: float = 1e-6
  beta_scale: float = 1.0

  def __post_init__(self) -> None:
    """Refuses counts out of their range, and heads that cannot share."""
    check_values(self, {"window": 2})
    check_multiple(self, "value_heads", "key_heads")

  @property
  def mixed_width(self) -> int:
    """How many channels the convolution has: queries, keys and values."""
    keys = self.key_heads * self.key_width
    return 2 * keys + self.value_heads * self.value_width

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "GatedDeltaNet":
    """Makes the layer, with new parameters."""
    return GatedDeltaNet(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps its states in slots, and no pages."""
    del width
    heads = (self.value_heads, self.key_width, self.value_width)
    taps, dtype = (self.window - 1, self.mixed_width), jnp.dtype(numerics.dtype)
    return BranchPools(
      slots=GatedDeltaNetState(
        recurrent_state=jax.ShapeDtypeStruct(heads, jnp.float32),
        conv_state=jax.ShapeDtypeStruct(taps, dtype),
      )
    )

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections, convolution and the chunked delta rule."""
    c, k, v = numerics.chunk, self.key_width, self.value_width
    columns = self.mixed_width + 2 * self.value_heads * (v + 1)
    products = 2 * width * columns + 2 * self.window * self.mixed_width
    pairs = self.key_heads * 4 * c * k + self.value_heads * 2 * c * v
    solve = self.value_heads * c * (k + v)
    state = self.value_heads * 6 * k * v
    return Flops(token=products + pairs + solve + state)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of keys and of values; gates run chunk by chunk."""
    return {
      "key_heads * key_width": self.key_heads * self.key_width,
      "value_heads * value_width": self.value_heads * self.value_width,
    }


class GatedDeltaNetState(NamedTuple):
  """What a Gated DeltaNet layer keeps in a slot; one number names both.

  Attributes:
    recurrent_state: The state S of every head, in float32 whatever the type of
      the activations. [s hv k v]
    conv_state: The last w-1 inputs of the convolution. [s w-1 d]
  """

  recurrent_state: at.StatePool | jax.ShapeDtypeStruct
  conv_state: at.ConvPool | jax.ShapeDtypeStruct


class GatedDeltaNet(ExplicitModule):
  """S_t = exp(a_t) S_{t-1} + k_t u_t^T with gates from the input.

  a_t = -exp(A_log) softplus(W_a x_t + dt_bias), beta_t = sigmoid(W_b x_t);
  q, k, v = silu(conv(W_qkv x)), q and k of unit length, q scaled by k^-1/2; the
  output is W_out (norm(o_t) * silu(W_z x_t)).
  """

  def __init__(
    self,
    config: GatedDeltaNetConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    values = c.value_heads * c.value_width
    self.config, self.numerics = config, numerics
    self.in_qkv = kernel(rngs, width, c.mixed_width, dtype)
    self.in_gate = kernel(rngs, width, values, dtype)
    self.in_decay_beta = kernel(rngs, width, 2 * c.value_heads, dtype)
    self.conv = taps(rngs, c.window, c.mixed_width, dtype)
    rate = jax.random.uniform(
      rngs.params(), (c.value_heads,), jnp.float32, 0.01, 16.0
    )
    self.log_rate = nnx.Param(jnp.log(rate))
    self.decay_bias = nnx.Param(jnp.ones(c.value_heads, jnp.float32))
    self.norm = nnx.Param(jnp.ones(c.value_width, jnp.dtype(dtype)))
    self.out = kernel(rngs, values, width, dtype)

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
    weights = self.in_qkv[...], self.in_gate[...]
    mixed, gate = dense_each(x, weights, self.numerics)
    with jax.named_scope("convolution"):
      mixed, conv_state = causal_conv1d(
        mixed,
        self.conv[...],
        pools.slots.conv_state,
        chunks,
        implementation=self.numerics.forced_implementation,
      )
    with jax.named_scope("heads"):
      q, k, v, log_decay, beta = map_rows(self._heads, x, mixed)
    with jax.named_scope("recurrence"):
      out, recurrent_state = gated_delta_rule(
        q,
        k,
        v,
        log_decay,
        beta,
        pools.slots.recurrent_state,
        chunks,
        precision=self.numerics.product_precision,
        implementation=self.numerics.forced_implementation,
      )
    with jax.named_scope("heads"):
      out = map_rows(self._gated_norm, out, gate)
    y = dense(out, self.out[...], self.numerics)
    state = GatedDeltaNetState(recurrent_state, conv_state)
    return y, pools._replace(slots=state)

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
    weights = self.in_qkv[...], self.in_gate[...]
    mixed, gate = dense_each(x, weights, self.numerics)
    mixed, conv_state = causal_conv1d_step(
      mixed,
      self.conv[...],
      pools.slots.conv_state,
      rows.read,
      rows.write,
      silu=True,
      implementation=self.numerics.forced_step_implementation,
    )
    out, recurrent_state = gated_delta_rule_projected_step(
      mixed,
      x,
      self.in_decay_beta[...],
      self.log_rate[...],
      self.decay_bias[...],
      pools.slots.recurrent_state,
      rows.read,
      rows.write,
      key_heads=self.config.key_heads,
      beta_scale=self.config.beta_scale,
      dtype=self.numerics.dtype,
      precision=self.numerics.precision,
      implementation=self.numerics.forced_step_implementation,
    )
    y = dense(self._gated_norm(out, gate), self.out[...], self.numerics)
    state = GatedDeltaNetState(recurrent_state, conv_state)
    return y, pools._replace(slots=state)

  def _gates(self, x: Float[Array, "rows d"]) -> Float32[Array, "rows gates"]:
    """Projects to decays and strengths."""
    return product(x, self.in_decay_beta[...], self.numerics.precision)

  def _heads(
    self, x: Float[Array, "rows d"], mixed: Float32[Array, "rows mixed"]
  ) -> tuple[Array, Array, Array, Array, Array]:
    """Makes the gates from the input, and heads from convolved projections."""
    c = self.config
    return project_heads(
      jax.nn.silu(mixed),
      self._gates(x),
      self.log_rate[...],
      self.decay_bias[...],
      key_heads=c.key_heads,
      widths=(c.key_width, c.value_width),
      beta_scale=c.beta_scale,
      dtype=self.numerics.dtype,
    )

  def _gated_norm(
    self, out: Float32[Array, "rows hv v"], gate: Float[Array, "rows values"]
  ) -> Float[Array, "rows values"]:
    gated = gated_rms_norm(
      out, gate.reshape(out.shape), self.norm[...], self.config.eps
    )
    return gated.reshape(gate.shape)
