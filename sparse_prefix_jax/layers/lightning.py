"""Lightning attention: linear attention with constant decays, norm, gate."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.kernels.linear_attention import (
  linear_attention,
  linear_attention_step,
)
from sparse_prefix_jax.layers.choices import check_values
from sparse_prefix_jax.layers.dense import dense, dense_each, kernel
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.normalization import scaled_rms_norm
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class LightningConfig:
  """Static choices of a lightning attention layer.

  Attributes:
    heads: How many heads it has.
    head_width: Width of a head, of queries, keys and values.
    eps: What the norm behind it adds to the mean square of a row.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = LightningConfig(heads=4, head_width=32)
    >>> config.keeps(64, Numerics()).slots.recurrent_state.shape
    (4, 32, 32)
  """

  kind: ClassVar[str] = "lightning"

  heads: int
  head_width: int
  eps: float = 1e-6

  def __post_init__(self) -> None:
    """Refuses counts out of their range."""
    check_values(self)

  @property
  def inner_width(self) -> int:
    """How many channels all heads have together."""
    return self.heads * self.head_width

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "Lightning":
    """Makes the layer, with new parameters."""
    return Lightning(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps its states in slots, and no pages."""
    del width, numerics
    heads = (self.heads, self.head_width, self.head_width)
    state = jax.ShapeDtypeStruct(heads, jnp.float32)
    return BranchPools(slots=LightningState(recurrent_state=state))

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections and the chunked recurrence."""
    c, k = numerics.chunk, self.head_width
    each = 10 * width * k + 4 * c * k + 4 * k * k
    return Flops(token=self.heads * each)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of queries, keys, values and gates."""
    return {"heads * head_width": self.inner_width}


class LightningState(NamedTuple):
  """What a lightning attention layer keeps in a slot.

  Attributes:
    recurrent_state: The state S of every head, in float32 whatever the type of
      the activations. [s hv k v]
  """

  recurrent_state: at.StatePool | jax.ShapeDtypeStruct


class Lightning(ExplicitModule):
  """S_t = exp(-r) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, with a rate per head.

  q, k, v = silu(W x); the output is W_out (sigmoid(W_g x_t) * norm(o_t)), with
  one mean square for all heads. (Qin et al., 2024.)

  Attributes:
    rate: The rate r of every head; it is not trained. [h]
  """

  def __init__(
    self,
    config: LightningConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    self.config, self.numerics = config, numerics
    self.in_query = kernel(rngs, width, c.inner_width, dtype)
    self.in_key = kernel(rngs, width, c.inner_width, dtype)
    self.in_value = kernel(rngs, width, c.inner_width, dtype)
    self.in_gate = kernel(rngs, width, c.inner_width, dtype)
    exponents = jnp.arange(1, c.heads + 1, dtype=jnp.float32)
    self.rate = nnx.Param(2.0 ** (-8.0 / c.heads * exponents))
    self.norm = nnx.Param(jnp.ones(c.inner_width, jnp.dtype(dtype)))
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
    *projected, gate = self._project(x)
    with jax.named_scope("heads"):
      q, k, v, log_decay = map_rows(self._heads, *projected)
    with jax.named_scope("recurrence"):
      out, state = linear_attention(
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
      out = map_rows(self._gated_norm, out, gate)
    return self._close(out), pools._replace(slots=LightningState(state))

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
    *projected, gate = self._project(x)
    q, k, v, log_decay = self._heads(*projected)
    out, state = linear_attention_step(
      q,
      k,
      v,
      log_decay,
      pools.slots.recurrent_state,
      rows.read,
      rows.write,
      implementation=self.numerics.forced_step_implementation,
    )
    out = self._close(self._gated_norm(out, gate))
    return out, pools._replace(slots=LightningState(state))

  def _project(self, x: Float[Array, "*rows d"]) -> list[Array]:
    """Queries, keys and values before their activation, and the gate."""
    weights = self.in_query, self.in_key, self.in_value, self.in_gate
    return list(dense_each(x, [w[...] for w in weights], self.numerics))

  def _close(self, out: Float[Array, "*rows inner"]) -> Array:
    return dense(out, self.out[...], self.numerics)

  def _heads(
    self, *projected: Float[Array, "rows inner"]
  ) -> tuple[Array, Array, Array, Float32[Array, "rows h"]]:
    """Activates and splits into heads; every token decays alike."""
    c = self.config

    def heads(x: Array) -> Array:
      activated = jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)
      return activated.reshape(-1, c.heads, c.head_width)

    q, k, v = map(heads, projected)
    decay = jnp.broadcast_to(-self.rate[...][None], (q.shape[0], c.heads))
    return q, k, v, decay

  def _gated_norm(
    self, out: Float32[Array, "rows h v"], gate: Float[Array, "rows inner"]
  ) -> Float[Array, "rows inner"]:
    """Normalises all heads of a row at once, then opens them."""
    rows = out.reshape(gate.shape).astype(gate.dtype)
    normed = scaled_rms_norm(rows, self.norm[...], self.config.eps)
    opened = jax.nn.sigmoid(gate.astype(jnp.float32))
    return (opened * normed.astype(jnp.float32)).astype(gate.dtype)
