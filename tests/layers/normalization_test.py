"""Norms against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.layers.normalization import (
  Norm,
  gated_rms_norm,
  l2_norm,
  residual_norm,
  rms_norm,
  scaled_rms_norm,
)
from tests.layers import reference

EPS = 1e-6


def values(seed, *shape, dtype="float32"):
  x = np.random.default_rng(seed).standard_normal(shape, np.float32)
  return jnp.asarray(x, dtype)


def cases(dtype):
  """Ordinary, large and tiny rows (where eps counts), one zero row."""
  x = values(0, 5, 3, 48)
  x = x * jnp.array([1.0, 1e4, 1e-3, 1e-6, 0.0])[:, None, None]
  return x.astype(dtype)


def assert_close(x, expected, dtype):
  tolerance = 1e-6 if dtype == "float32" else 1e-2
  assert x.dtype == jnp.dtype(dtype)
  np.testing.assert_allclose(
    reference.wide(x), expected, rtol=tolerance, atol=tolerance
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("centred", [True, False])
def test_rms_norm(centred, dtype):
  x, weight = cases(dtype), values(1, 48, dtype=dtype)
  scale = centred + reference.wide(weight)
  expected = reference.rms(reference.wide(x), EPS) * scale
  apply = rms_norm if centred else scaled_rms_norm
  assert_close(apply(x, weight, EPS), expected, dtype)
  norm = Norm(centred=centred, eps=EPS)
  assert_close(residual_norm(x, weight, norm), expected, dtype)


def test_rms_norm_of_bfloat16_rounds_once():
  x, weight = cases("bfloat16"), values(1, 48, dtype="bfloat16")
  exact = rms_norm(x.astype(jnp.float32), weight.astype(jnp.float32), EPS)
  np.testing.assert_array_equal(
    rms_norm(x, weight, EPS), exact.astype(jnp.bfloat16)
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gated_rms_norm(dtype):
  x, gate = cases("float32"), values(2, 5, 3, 48, dtype=dtype)
  weight = values(1, 48, dtype=dtype)
  expected = reference.rms(reference.wide(x), EPS) * reference.wide(weight)
  expected = expected * reference.silu(reference.wide(gate))
  # Rounded before the weight, after it, and after the gate.
  assert_close(gated_rms_norm(x, gate, weight, EPS), expected, dtype)


def test_l2_norm():
  x = cases("float32")
  wide = reference.wide(x)
  expected = wide / np.sqrt((wide**2).sum(-1, keepdims=True) + 1e-6)
  assert_close(l2_norm(x), expected, "float32")
