"""Activations by name: what stands between two products."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _relu_squared(x: Array) -> Array:
  """max(x, 0)^2 (So et al., 2021)."""
  return jnp.square(jax.nn.relu(x))


def _gelu_tanh(x: Array) -> Array:
  """The approximation of x Phi(x) by a hyperbolic tangent."""
  return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "relu_squared": _relu_squared,
  "gelu_tanh": _gelu_tanh,
}
"""Every activation that a configuration can name; computed in float32."""
