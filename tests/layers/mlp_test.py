"""The feed-forward layer without a gate against float64."""

import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.layers import MLPConfig, Numerics
from tests.layers import reference


@pytest.mark.parametrize("activation", ["relu_squared", "gelu_tanh"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_formula(dtype, activation):
  config = MLPConfig(hidden=128, activation=activation, bias=True)
  layer = config.make(64, Numerics(dtype=dtype), rngs=nnx.Rngs(0))
  layer.up_bias[...] = layer.up_bias[...] + 0.5
  layer.down_bias[...] = layer.down_bias[...] - 1.5
  x = jax.random.normal(jax.random.key(0), (2, 16, 64)).astype(dtype)
  got = jax.jit(lambda layer, x: layer.rows(x))(layer, x)
  up, down = (reference.wide(w[...]).T for w in (layer.up, layer.down))
  hidden = reference.activation(activation, reference.wide(x) @ up + 0.5)
  expected = hidden @ down - 1.5
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  assert got.dtype == x.dtype
  error = np.abs(reference.wide(got) - expected).max()
  assert error <= tolerance * np.abs(expected).max()


def test_an_unknown_activation_is_refused():
  with pytest.raises(
    ValueError, match=r"activation is 'tanh'; .* relu_squared"
  ):
    MLPConfig(hidden=8, activation="tanh")
