"""Mamba-2: short convolution, linear attention with decays, gated norm."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.kernels.linear_attention import (
  linear_attention,
  linear_attention_step,
)
from sparse_prefix_jax.layers.choices import (
  check_multiple,
  check_names,
  check_values,
  is_positive,
)
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
from sparse_prefix_jax.layers.normalization import (
  gate_before_rms_norm,
  grouped_rms_norm,
)
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops

_PARTS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config:
  """Static choices of a Mamba-2 layer.

  Attributes:
    heads: Heads hv of inputs and outputs, a multiple of groups.
    groups: Groups h of heads that share keys B and queries C.
    head_width: Width v of a head.
    state_width: Width k of keys and queries.
    window: Taps w of the convolution, at least 2.
    bias: Whether the projections in and out have biases.
    out_bias: Whether the one out has; None is as `bias`.
    conv_bias: Whether the convolution has one.
    eps: What the gated norm adds to the mean square of a group.
    least_step: What steps are raised to; None leaves them.
    norm: Where the gate stands: "behind_gate" normalises what the gate has
      opened, "before_gate" first, and "none" does not normalise.
    part_scales: What the projections are multiplied by: those of the gate, of
      inputs, keys, queries and steps; None multiplies by nothing.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = Mamba2Config(heads=4, groups=2, head_width=32, state_width=16)
    >>> config.keeps(64, Numerics()).slots.recurrent_state.shape
    (4, 16, 32)
  """

  kind: ClassVar[str] = "mamba2"

  heads: int
  groups: int
  head_width: int
  state_width: int
  window: int = 4
  bias: bool = False
  conv_bias: bool = True
  out_bias: bool | None = None
  eps: float = 1e-5
  least_step: float | None = None
  norm: str = "behind_gate"
  part_scales: tuple[float, ...] | None = None

  def __post_init__(self) -> None:
    """Refuses counts out of their range, and heads that cannot share."""
    check_values(self, {"window": 2})
    check_multiple(self, "heads", "groups")
    if not isinstance(self.out_bias, bool | None):
      raise ValueError(
        f"out_bias is {self.out_bias!r}; it must be True, False or None."
      )
    check_names(self, {"norm": ("behind_gate", "before_gate", "none")})
    if self.least_step is not None and not is_positive(self.least_step):
      raise ValueError(
        f"least_step is {self.least_step!r}; it must be a finite number above "
        "0 or None."
      )
    scales = self.part_scales
    if scales is not None and (
      not isinstance(scales, tuple)
      or len(scales) != _PARTS
      or not all(map(is_positive, scales))
    ):
      raise ValueError(
        f"part_scales is {scales!r}; it must be a tuple of {_PARTS} finite "
        "numbers above 0, or None."
      )

  @property
  def inner_width(self) -> int:
    """How many channels all heads have together."""
    return self.heads * self.head_width

  @property
  def has_out_bias(self) -> bool:
    """Whether the projection out has a bias."""
    return self.bias if self.out_bias is None else self.out_bias

  @property
  def mixed_width(self) -> int:
    """How many channels the convolution has: inputs, keys and queries."""
    return self.inner_width + 2 * self.groups * self.state_width

  def make(self, width: int, numerics: Numerics, *, rngs: nnx.Rngs) -> "Mamba2":
    """Makes the layer, with new parameters."""
    return Mamba2(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps its states in slots, and no pages."""
    del width
    heads = (self.heads, self.state_width, self.head_width)
    taps, dtype = (self.window - 1, self.mixed_width), jnp.dtype(numerics.dtype)
    return BranchPools(
      slots=Mamba2State(
        recurrent_state=jax.ShapeDtypeStruct(heads, jnp.float32),
        conv_state=jax.ShapeDtypeStruct(taps, dtype),
      )
    )

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections, convolution and the chunked recurrence."""
    c, k, v = numerics.chunk, self.state_width, self.head_width
    columns = self.mixed_width + 2 * self.inner_width + self.heads
    products = 2 * width * columns + 2 * self.window * self.mixed_width
    pairs = self.groups * 2 * c * k + self.heads * 2 * c * v
    state = self.heads * 4 * k * v
    return Flops(token=products + pairs + state)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of inputs and of keys; steps run chunk by chunk."""
    return {
      "heads * head_width": self.inner_width,
      "groups * state_width": self.groups * self.state_width,
    }


class Mamba2State(NamedTuple):
  """What a Mamba-2 layer keeps in a slot; one number names both.

  Attributes:
    recurrent_state: The state S of every head, in float32 whatever the type of
      the activations. [s hv k v]
    conv_state: The last w-1 inputs of the convolution. [s w-1 d]
  """

  recurrent_state: at.StatePool | jax.ShapeDtypeStruct
  conv_state: at.ConvPool | jax.ShapeDtypeStruct


class _Heads(NamedTuple):
  """The inputs of the recurrence in its order, and of what skips it."""

  q: Float[Array, "rows h k"]
  k: Float[Array, "rows h k"]
  v: Float[Array, "rows hv v"]
  log_decay: Float32[Array, "rows hv"]
  skipped: Float32[Array, "rows hv v"]


class Mamba2(ExplicitModule):
  """S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T, o_t = S_t^T C_t + D x_t.

  A = -exp(A_log), dt_t = softplus(W_dt u_t + dt_bias); x, B, C are
  silu(conv(W u)); the output is W_out norm(o_t * silu(W_z u_t)), with one mean
  square for each group of heads. (Dao and Gu, 2024.)
  """

  def __init__(
    self,
    config: Mamba2Config,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype

    self.config, self.numerics = config, numerics
    self.in_gate = kernel(rngs, width, c.inner_width, dtype)
    self.in_mixed = kernel(rngs, width, c.mixed_width, dtype)
    self.in_step = kernel(rngs, width, c.heads, dtype)
    self.in_gate_bias = bias_row(c.bias, c.inner_width, dtype)
    self.in_mixed_bias = bias_row(c.bias, c.mixed_width, dtype)
    self.in_step_bias = bias_row(c.bias, c.heads, dtype)
    self.conv = taps(rngs, c.window, c.mixed_width, dtype)
    self.conv_bias = bias_row(c.conv_bias, c.mixed_width, dtype)
    rate = jax.random.uniform(rngs.params(), (c.heads,), jnp.float32, 1.0, 16.0)
    self.log_rate = nnx.Param(jnp.log(rate))
    # Steps of about 0.01, as the softplus makes them.
    self.step_bias = nnx.Param(jnp.full(c.heads, -4.6, jnp.float32))
    self.direct = nnx.Param(jnp.ones(c.heads, jnp.float32))
    if c.norm != "none":
      self.norm = nnx.Param(jnp.ones(c.inner_width, jnp.dtype(dtype)))
    self.out = kernel(rngs, c.inner_width, width, dtype)
    self.out_bias = bias_row(c.has_out_bias, width, dtype)

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
    with jax.named_scope("heads"):
      q, k, v, log_decay, skipped = map_rows(self._heads, x, mixed)
    with jax.named_scope("recurrence"):
      out, recurrent_state = linear_attention(
        q,
        k,
        v,
        log_decay,
        pools.slots.recurrent_state,
        chunks,
        precision=self.numerics.product_precision,
        implementation=self.numerics.forced_implementation,
      )
    with jax.named_scope("heads"):
      out = map_rows(self._gated_norm, out, skipped, gate)
    state = Mamba2State(recurrent_state, conv_state)
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
    q, k, v, log_decay, skipped = self._heads(x, mixed)
    out, recurrent_state = linear_attention_step(
      q,
      k,
      v,
      log_decay,
      pools.slots.recurrent_state,
      rows.read,
      rows.write,
      implementation=self.numerics.forced_step_implementation,
    )
    out = self._gated_norm(out, skipped, gate)
    state = Mamba2State(recurrent_state, conv_state)
    return self._close(out), pools._replace(slots=state)

  def _project(self, x: Float[Array, "*rows d"]) -> tuple[Array, Array]:
    """The inputs of the convolution, and the gate."""
    c, weights = self.config, (self.in_mixed[...], self.in_gate[...])
    biases = self.in_mixed_bias, self.in_gate_bias
    mixed, gate = dense_each(x, weights, self.numerics, biases=biases)
    if c.part_scales is None:
      return mixed, gate
    keys = c.groups * c.state_width
    widths = np.array([c.inner_width, keys, keys])
    scale = np.repeat(np.float32(c.part_scales[1:4]), widths).astype(x.dtype)
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    scaled = mixed * scale, gate * c.part_scales[0]
    return barrier(scaled)

  def _close(self, out: Float[Array, "*rows inner"]) -> Array:
    return dense(out, self.out[...], self.numerics, bias=self.out_bias)

  def _heads(
    self, x: Float[Array, "rows d"], mixed: Float32[Array, "rows mixed"]
  ) -> _Heads:
    """Makes steps from the input, and heads from convolved projections."""
    c = self.config
    step = product(x, self.in_step[...], self.numerics.precision)
    step = step + added_row(self.in_step_bias)
    if c.part_scales is not None:
      step = step * c.part_scales[4]
    step = jax.nn.softplus(step + self.step_bias[...][None])
    if c.least_step is not None:
      step = jnp.maximum(step, c.least_step)
    log_decay = -jnp.exp(self.log_rate[...])[None] * step
    # As trained: rounded after the activation, before the step multiplies it.
    mixed = jax.nn.silu(mixed + added_row(self.conv_bias)).astype(x.dtype)
    keys = c.groups * c.state_width
    v, k, q = jnp.split(mixed, [c.inner_width, c.inner_width + keys], axis=-1)
    v = v.reshape(-1, c.heads, c.head_width).astype(jnp.float32)
    k, q = (u.reshape(-1, c.groups, c.state_width) for u in (k, q))
    skipped = v * self.direct[...][None, :, None]
    v = (v * step[:, :, None]).astype(x.dtype)
    return _Heads(q, k, v, log_decay, skipped)

  def _gated_norm(
    self,
    out: Float32[Array, "rows hv v"],
    skipped: Float32[Array, "rows hv v"],
    gate: Float[Array, "rows inner"],
  ) -> Float[Array, "rows inner"]:
    c = self.config
    out = (out + skipped).reshape(gate.shape)
    if c.norm == "behind_gate":
      return gate_before_rms_norm(out, gate, self.norm[...], c.eps, c.groups)
    if c.norm == "before_gate":
      weight = self.norm[...]
      out = grouped_rms_norm(out, weight, c.eps, c.groups)
    return (out * jax.nn.silu(gate.astype(jnp.float32))).astype(gate.dtype)
