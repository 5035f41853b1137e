"""SwiGLU against float64."""

import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.layers import Numerics, SwiGLUConfig
from tests.layers import reference


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_formula(dtype):
  config, numerics = SwiGLUConfig(hidden=128), Numerics(dtype=dtype)
  layer = config.make(64, numerics, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 16, 64)).astype(dtype)
  got = jax.jit(lambda layer, x: layer.rows(x))(layer, x)
  gate, up, down = (
    reference.wide(w[...]) for w in (layer.gate, layer.up, layer.down)
  )
  wide = reference.wide(x)
  expected = (reference.silu(wide @ gate) * (wide @ up)) @ down
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  assert got.dtype == x.dtype
  error = np.abs(reference.wide(got) - expected).max()
  assert error <= tolerance * np.abs(expected).max()
