"""The gated feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from sparse_prefix_jax.layers.dense import dense, kernel


class SwiGLU(nnx.Module):
  """Computes down(silu(gate(x)) * up(x)), the feed-forward layer.

  Attributes:
    gate: The weight of the branch that goes through silu. [d hidden]
    up: The weight of the branch that it multiplies. [d hidden]
    down: The weight that brings both back to the model width. [hidden d]
  """

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    dtype: str,
    precision: str,
    rngs: nnx.Rngs,
  ) -> None:
    self.gate = kernel(rngs, width, hidden, dtype)
    self.up = kernel(rngs, width, hidden, dtype)
    self.down = kernel(rngs, hidden, width, dtype)
    self.precision = precision

  def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Computes every row alone: two rows and more give it the same bits."""
    gate = dense(x, self.gate[...], self.precision)
    up = dense(x, self.up[...], self.precision)
    with jax.named_scope("activation"):
      hidden = jax.nn.silu(gate.astype(jnp.float32)).astype(x.dtype) * up
    hidden = lax.optimization_barrier(hidden)
    return dense(hidden, self.down[...], self.precision)
