"""SwiGLU against float64."""

import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.layers import Numerics, SwiGLUConfig
from tests.layers import reference


@pytest.mark.parametrize(
  ("dtype", "changes"),
  [
    ("float32", {}),
    ("bfloat16", {}),
    ("float32", {"activation": "gelu_tanh", "bias": True, "gate_scale": 0.5}),
  ],
)
def test_equals_the_formula(dtype, changes):
  config, numerics = SwiGLUConfig(hidden=128, **changes), Numerics(dtype=dtype)
  layer = config.make(64, numerics, rngs=nnx.Rngs(0))
  biases = [layer.gate_bias, layer.up_bias, layer.down_bias]
  for bias, value in zip(biases, (0.5, -0.25, 1.5), strict=True):
    if bias is not None:
      bias[...] = bias[...] + value
  x = jax.random.normal(jax.random.key(0), (2, 16, 64)).astype(dtype)
  got = jax.jit(lambda layer, x: layer.rows(x))(layer, x)
  gate, up, down = (
    reference.wide(w[...]).T for w in (layer.gate, layer.up, layer.down)
  )
  wide = reference.wide(x)
  gate_bias, up_bias, down_bias = map(reference.bias_of, biases)
  gated = (wide @ gate + gate_bias) * config.gate_scale
  hidden = reference.activation(config.activation, gated)
  expected = (hidden * (wide @ up + up_bias)) @ down + down_bias
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  assert got.dtype == x.dtype
  error = np.abs(reference.wide(got) - expected).max()
  assert error <= tolerance * np.abs(expected).max()


def test_an_unknown_activation_is_refused():
  with pytest.raises(ValueError, match=r"activation is 'tanh'; .* silu"):
    SwiGLUConfig(hidden=8, activation="tanh")


@pytest.mark.parametrize("width", [0, -1, True])
def test_what_is_no_width_is_refused(width):
  with pytest.raises(ValueError, match=f"a weight has {width} inputs; it must"):
    SwiGLUConfig(hidden=8).make(width, Numerics(), rngs=nnx.Rngs(0))
