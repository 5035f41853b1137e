"""A layer of one's own: a leaky sum of every channel."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sparse_prefix_jax.kernels.chunks import packed_scan, step_rows
from sparse_prefix_jax.layers import (
  BranchPools,
  ExplicitModule,
  Flops,
  Numerics,
)
from sparse_prefix_jax.layers.dense import dense, kernel


@dataclasses.dataclass(frozen=True)
class LeakySumConfig:
  """Static choices: how many channels are summed."""

  kind: ClassVar[str] = "leaky_sum"

  channels: int

  def make(self, width: int, numerics: Numerics, *, rngs: nnx.Rngs) -> Any:
    """Makes the layer, with new parameters."""
    return LeakySum(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """One slot is the sums after some token, in float32; no pages."""
    state = jax.ShapeDtypeStruct((self.channels,), jnp.float32)
    return BranchPools(slots=state)

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Two products, and two operations per channel."""
    return Flops(token=4 * width * self.channels + 2 * self.channels)

  def product_widths(self) -> Mapping[str, int]:
    """The product that brings the model width to the channels."""
    return {"channels": self.channels}


class LeakySum(ExplicitModule):
  """s_t = a s_{t-1} + W_in x_t with a in (0, 1); the output is W_out s_t."""

  def __init__(
    self,
    config: LeakySumConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    self.config, self.numerics = config, numerics
    self.enter = kernel(rngs, width, config.channels, numerics.dtype)
    self.leak = nnx.Param(jnp.linspace(-1.0, 3.0, config.channels))
    self.out = kernel(rngs, config.channels, width, numerics.dtype)

  def __call__(self, x, pools, chunks, page_table):
    """Runs n packed chunks: x is [n c d], the slots are [s channels]."""
    entered = dense(x, self.enter[...], self.numerics)
    sums, state = packed_scan(self._chunk, pools.slots, entered, chunks)
    return self._leave(sums, x), pools._replace(slots=state)

  def step(self, x, pools, rows, page_table):
    """Runs one token of b running sequences: x is [b d]."""
    entered = dense(x, self.enter[...], self.numerics)
    sums, state = step_rows(
      self._token, pools.slots, (entered,), rows.read, rows.write
    )
    return self._leave(sums, x), pools._replace(slots=state)

  def _chunk(self, state, xs, length):
    """Real tokens advance the sums, padding selects them as they were."""

    def token(state, step):
      x, real = step
      advanced, y = self._token(state, x)
      return jnp.where(real, advanced, state), y

    return lax.scan(token, state, (xs, jnp.arange(xs.shape[0]) < length))

  def _token(self, state, x):
    decay = jax.nn.sigmoid(self.leak[...]).reshape((1,) * (x.ndim - 1) + (-1,))
    state = decay * state + x.astype(jnp.float32)
    return state, state

  def _leave(self, sums, x):
    return dense(sums.astype(x.dtype), self.out[...], self.numerics)
