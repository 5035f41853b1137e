"""Gated DeltaNet: short convolution, gated delta rule, gated norm."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_chunks
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule,
  gated_delta_rule_step,
)
from sparse_prefix_jax.layers.dense import dense, kernel
from sparse_prefix_jax.layers.normalization import gated_rms_norm, l2_norm


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetConfig:
  """Static choices of a Gated DeltaNet layer.

  Attributes:
    width: Model width d.
    key_heads: Heads h of queries and keys.
    value_heads: Heads hv of values, a multiple of key_heads.
    key_width: Width k of a query or key head.
    value_width: Width v of a value head.
    window: Taps w of the convolution.
    eps: What the gated norm adds to the mean square.
    dtype: The type of weights and activations.
    precision: The precision of the matrix products.
    implementation: Which implementation of the operations runs; None takes the
      best that fits.
  """

  width: int
  key_heads: int
  value_heads: int
  key_width: int
  value_width: int
  window: int
  eps: float
  dtype: str
  precision: str
  implementation: str | None = None

  @property
  def mixed_width(self) -> int:
    """How many channels the convolution has: queries, keys and values."""
    keys = self.key_heads * self.key_width
    return 2 * keys + self.value_heads * self.value_width


class StatePools(NamedTuple):
  """What a Gated DeltaNet layer keeps per slot; one number names both.

  Attributes:
    recurrent_state: The state S of every head, in float32 whatever the type of
      the activations. [s hv k v]
    conv_state: The last w-1 inputs of the convolution. [s w-1 d]
  """

  recurrent_state: at.StatePool
  conv_state: at.ConvPool


class _Heads(NamedTuple):
  """The inputs of the delta rule, in its order; rows are tokens."""

  q: Float[Array, "rows h k"]
  k: Float[Array, "rows h k"]
  v: Float[Array, "rows hv v"]
  log_decay: Float32[Array, "rows hv"]
  beta: Float32[Array, "rows hv"]


class GatedDeltaNet(nnx.Module):
  """S_t = exp(a_t) S_{t-1} + k_t u_t^T with gates from the input.

  a_t = -exp(A_log) softplus(W_a x_t + dt_bias), beta_t = sigmoid(W_b x_t);
  q, k, v = silu(conv(W_qkv x)), q and k of unit length, q scaled by k^-1/2; the
  output is W_out (norm(o_t) * silu(W_z x_t)).
  """

  def __init__(self, config: GatedDeltaNetConfig, *, rngs: nnx.Rngs) -> None:
    c, values = config, config.value_heads * config.value_width
    self.config = config
    self.in_qkv = kernel(rngs, c.width, c.mixed_width, c.dtype)
    self.in_gate = kernel(rngs, c.width, values, c.dtype)
    self.in_decay_beta = kernel(rngs, c.width, 2 * c.value_heads, c.dtype)
    self.conv = kernel(rngs, c.window, c.mixed_width, c.dtype)
    rate = jax.random.uniform(
      rngs.params(), (c.value_heads,), jnp.float32, 0.01, 16.0
    )
    self.log_rate = nnx.Param(jnp.log(rate))
    self.decay_bias = nnx.Param(jnp.ones(c.value_heads, jnp.float32))
    self.norm = nnx.Param(jnp.ones(c.value_width, jnp.dtype(c.dtype)))
    self.out = kernel(rngs, values, c.width, c.dtype)

  def init_pools(self, *, slots: int, pages: int, chunk: int) -> StatePools:
    """Makes pools of zeros for that many slots."""
    del pages, chunk  # a recurrent layer keeps no keys and values
    c = self.config
    shape = (slots, c.value_heads, c.key_width, c.value_width)
    return StatePools(
      recurrent_state=jnp.zeros(shape, jnp.float32),
      conv_state=jnp.zeros(
        (slots, c.window - 1, c.mixed_width), jnp.dtype(c.dtype)
      ),
    )

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: StatePools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], StatePools]:
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
    precision = self.config.precision
    mixed = dense(x, self.in_qkv[...], precision)
    gate = dense(x, self.in_gate[...], precision)
    with jax.named_scope("convolution"):
      mixed, conv_state = causal_conv1d(
        *(mixed, self.conv[...], pools.conv_state, chunks),
        implementation=self.config.implementation,
      )
    with jax.named_scope("heads"):
      q, k, v, log_decay, beta = map_chunks(self._heads, x, mixed)
    with jax.named_scope("recurrence"):
      out, recurrent_state = gated_delta_rule(
        *(q, k, v, log_decay, beta, pools.recurrent_state, chunks),
        precision=jax.lax.Precision(precision),
        implementation=self.config.implementation,
      )
    with jax.named_scope("heads"):
      out = map_chunks(self._gated_norm, out, gate)
    y = dense(out, self.out[...], precision)
    return y, StatePools(recurrent_state, conv_state)

  def step(
    self,
    x: Float[Array, "b d"],
    pools: StatePools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], StatePools]:
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
    precision = self.config.precision
    mixed = dense(x, self.in_qkv[...], precision)
    gate = dense(x, self.in_gate[...], precision)
    mixed, conv_state = causal_conv1d_step(
      mixed, self.conv[...], pools.conv_state, rows.read, rows.write
    )
    out, recurrent_state = gated_delta_rule_step(
      *self._heads(x, mixed), pools.recurrent_state, rows.read, rows.write
    )
    y = dense(self._gated_norm(out, gate), self.out[...], precision)
    return y, StatePools(recurrent_state, conv_state)

  def _heads(
    self, x: Float[Array, "rows d"], mixed: Float32[Array, "rows mixed"]
  ) -> _Heads:
    """Makes the gates from the input, and heads from convolved projections."""
    c = self.config
    gates = jnp.matmul(
      x,
      self.in_decay_beta[...],
      precision=c.precision,
      preferred_element_type=jnp.float32,
    )
    decay, beta = jnp.split(gates, 2, axis=-1)
    rate = jnp.exp(self.log_rate[...])[None]
    log_decay = -rate * jax.nn.softplus(decay + self.decay_bias[...][None])
    keys = c.key_heads * c.key_width
    q, k, v = jnp.split(jax.nn.silu(mixed), [keys, 2 * keys], axis=-1)
    q, k = (l2_norm(u.reshape(-1, c.key_heads, c.key_width)) for u in (q, k))
    v = v.reshape(-1, c.value_heads, c.value_width)
    q = q * c.key_width**-0.5
    q, k, v = (u.astype(x.dtype) for u in (q, k, v))
    return _Heads(q, k, v, log_decay, jax.nn.sigmoid(beta))

  def _gated_norm(
    self, out: Float32[Array, "rows hv v"], gate: Float[Array, "rows values"]
  ) -> Float[Array, "rows values"]:
    gated = gated_rms_norm(
      out, gate.reshape(out.shape), self.norm[...], self.config.eps
    )
    return gated.reshape(gate.shape)
