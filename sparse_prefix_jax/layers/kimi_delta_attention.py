"""Kimi Delta Attention: a delta rule with a decay for every key channel."""

import dataclasses
import math
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
from sparse_prefix_jax.kernels.kimi_delta_attention import (
  kimi_delta_attention,
  kimi_delta_attention_step,
)
from sparse_prefix_jax.layers.choices import check_values
from sparse_prefix_jax.layers.dense import dense, kernel, product, taps
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.normalization import l2_norm, scaled_rms_norm
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class KimiDeltaAttentionConfig:
  """Static choices of a Kimi Delta Attention layer.

  Attributes:
    heads: Heads of queries, keys and values.
    head_width: Width k = v of each, and of what decays and gates are projected
      through.
    window: Taps w of the convolution, at least 2.
    eps: What the gated norm adds to the mean square.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = KimiDeltaAttentionConfig(heads=4, head_width=32)
    >>> config.keeps(64, Numerics()).slots.recurrent_state.shape
    (4, 32, 32)
  """

  kind: ClassVar[str] = "kimi_delta_attention"

  heads: int
  head_width: int
  window: int = 4
  eps: float = 1e-5

  def __post_init__(self) -> None:
    """Refuses counts out of their range."""
    check_values(self, {"window": 2})

  @property
  def inner_width(self) -> int:
    """Channels of all heads."""
    return self.heads * self.head_width

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "KimiDeltaAttention":
    """Makes the layer, with new parameters."""
    return KimiDeltaAttention(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps its states in slots, and no pages."""
    del width
    heads = (self.heads, self.head_width, self.head_width)
    taps, dtype = (self.window - 1, 3 * self.inner_width), numerics.dtype
    return BranchPools(
      slots=KimiDeltaAttentionState(
        recurrent_state=jax.ShapeDtypeStruct(heads, jnp.float32),
        conv_state=jax.ShapeDtypeStruct(taps, jnp.dtype(dtype)),
      )
    )

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections, convolution and the chunked delta rule."""
    c, k, inner = numerics.chunk, self.head_width, self.inner_width
    wide = 2 * width * 4 * inner + 2 * self.window * 3 * inner
    narrow = 2 * width * (2 * k + self.heads) + 2 * k * 2 * inner
    rule = self.heads * (6 * c * k + 2 * c * k + 6 * k * k)
    return Flops(token=wide + narrow + rule)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of every head; what is narrower runs by chunks."""
    return {"heads * head_width": self.inner_width}


class KimiDeltaAttentionState(NamedTuple):
  """What a Kimi Delta Attention layer keeps in a slot.

  Attributes:
    recurrent_state: The state S of every head, in float32 whatever the type of
      the activations. [s hv k v]
    conv_state: The last w-1 inputs of the convolution. [s w-1 d]
  """

  recurrent_state: at.StatePool | jax.ShapeDtypeStruct
  conv_state: at.ConvPool | jax.ShapeDtypeStruct


class _Narrow(NamedTuple):
  """What tokens are first projected to: parts of decays, gates, strengths."""

  decay: Float[Array, "*rows k"]
  gate: Float[Array, "*rows k"]
  beta: Float32[Array, "*rows h"]


class KimiDeltaAttention(ExplicitModule):
  """S_t = diag(exp(a_t)) S_{t-1} + k_t u_t^T with decays from the input.

  a_t = -exp(A_log) softplus(W_fb W_fa x_t + dt_bias), one for each channel of a
  key; beta_t = sigmoid(W_b x_t); q, k, v = silu(conv(W_qkv x)), q and k of unit
  length, q scaled by k^-1/2; the output is W_out (norm(o_t) *
  sigmoid(W_gb W_ga x_t)). (Kimi Linear, arXiv 2510.26692.)

  Attributes:
    in_qkv: The weight of queries, keys and values, one below the other.
    in_narrow: The weights W_fa, W_ga and W_b, one below the other.
    in_decay: The weight W_fb.
    in_gate: The weight W_gb.
    conv: Taps of the convolution. [w 3*h*k]
    log_rate: A_log of every head. [h]
    decay_bias: dt_bias of every channel. [h*k]
    norm: A factor per channel of a head. [k]
    out: The weight that leads back.
  """

  def __init__(
    self,
    config: KimiDeltaAttentionConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    self.config, self.numerics = config, numerics
    self.in_qkv = kernel(rngs, width, 3 * c.inner_width, dtype)
    self.in_narrow = kernel(rngs, width, 2 * c.head_width + c.heads, dtype)
    self.in_decay = kernel(rngs, c.head_width, c.inner_width, dtype)
    self.in_gate = kernel(rngs, c.head_width, c.inner_width, dtype)
    self.conv = taps(rngs, c.window, 3 * c.inner_width, dtype)
    rate = jax.random.uniform(rngs.params(), (c.heads,), jnp.float32, 1.0, 16.0)
    self.log_rate = nnx.Param(jnp.log(rate))
    step = jax.random.uniform(
      rngs.params(), (c.inner_width,), jnp.float32, *map(math.log, (1e-3, 0.1))
    )
    # The inverse of softplus: decays begin at steps of 0.001 to 0.1.
    step = jnp.maximum(jnp.exp(step), 1e-4)
    self.decay_bias = nnx.Param(step + jnp.log(-jnp.expm1(-step)))
    self.norm = nnx.Param(jnp.ones(c.head_width, jnp.dtype(dtype)))
    self.out = kernel(rngs, c.inner_width, width, dtype)

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

    def heads(mixed: Array, *gates: Array) -> tuple[Array, ...]:
      return self._heads(jax.nn.silu(mixed), *gates)

    mixed = dense(x, self.in_qkv[...], self.numerics)
    with jax.named_scope("heads"):
      narrow = map_rows(self._narrow, x)
    decay = dense(narrow.decay, self.in_decay[...], self.numerics)
    gate = dense(narrow.gate, self.in_gate[...], self.numerics)
    with jax.named_scope("convolution"):
      mixed, conv_state = causal_conv1d(
        mixed,
        self.conv[...],
        pools.slots.conv_state,
        chunks,
        implementation=self.numerics.forced_implementation,
      )
    with jax.named_scope("heads"):
      q, k, v, log_decay, beta = map_rows(heads, mixed, decay, narrow.beta)
    with jax.named_scope("recurrence"):
      out, recurrent_state = kimi_delta_attention(
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
    state = KimiDeltaAttentionState(recurrent_state, conv_state)
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
    mixed = dense(x, self.in_qkv[...], self.numerics)
    narrow = self._narrow(x)
    decay = dense(narrow.decay, self.in_decay[...], self.numerics)
    gate = dense(narrow.gate, self.in_gate[...], self.numerics)
    mixed, conv_state = causal_conv1d_step(
      mixed,
      self.conv[...],
      pools.slots.conv_state,
      rows.read,
      rows.write,
      silu=True,
      implementation=self.numerics.forced_step_implementation,
    )
    out, recurrent_state = kimi_delta_attention_step(
      *self._heads(mixed, decay, narrow.beta),
      pools.slots.recurrent_state,
      rows.read,
      rows.write,
      implementation=self.numerics.forced_step_implementation,
    )
    y = dense(self._gated_norm(out, gate), self.out[...], self.numerics)
    state = KimiDeltaAttentionState(recurrent_state, conv_state)
    return y, pools._replace(slots=state)

  def _narrow(self, x: Float[Array, "rows d"]) -> _Narrow:
    """Projects to what decays and gates are made of, and to strengths."""
    width = self.config.head_width
    y = product(x, self.in_narrow[...], self.numerics.precision)
    decay, gate, beta = jnp.split(y, [width, 2 * width], axis=-1)
    beta = jax.nn.sigmoid(beta)
    return _Narrow(decay.astype(x.dtype), gate.astype(x.dtype), beta)

  def _heads(
    self,
    mixed: Float32[Array, "rows mixed"],
    decay: Float[Array, "rows keys"],
    beta: Float32[Array, "rows h"],
  ) -> tuple[Array, Array, Array, Array, Array]:
    """Makes heads from convolved projections, and log decays of channels."""
    c = self.config
    q, k, v = (
      u.reshape(-1, c.heads, c.head_width) for u in jnp.split(mixed, 3, axis=-1)
    )
    q, k = l2_norm(q) * c.head_width**-0.5, l2_norm(k)
    q, k, v = (u.astype(self.numerics.dtype) for u in (q, k, v))
    step = decay.astype(jnp.float32) + self.decay_bias[...][None]
    step = jax.nn.softplus(step).reshape(q.shape)
    rate = jnp.exp(self.log_rate[...])
    return q, k, v, -rate[None, :, None] * step, beta

  def _gated_norm(
    self, out: Float32[Array, "rows h v"], gate: Float[Array, "rows values"]
  ) -> Float[Array, "rows values"]:
    """Normalises every head and opens it by the sigmoid of its gate."""
    weight = self.norm[...].astype(jnp.float32)
    normed = scaled_rms_norm(out, weight, self.config.eps)
    opened = jax.nn.sigmoid(gate.astype(jnp.float32)).reshape(out.shape)
    return (normed * opened).astype(gate.dtype).reshape(gate.shape)
