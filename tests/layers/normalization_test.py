"""Norms against float64."""

import functools
import re

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
from tests.kernels.devices import HOPPER, lowered, traced_for
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


@pytest.mark.parametrize("rows", [2, 64, 1024, 1030])
def test_on_a_gpu_any_number_of_rows_is_reduced_in_the_same_shape(rows):
  x, weight = values(2, rows, 1, 32), values(1, 32)
  run = functools.partial(residual_norm, norm=Norm(eps=EPS))
  with traced_for(HOPPER):
    out = run(x, weight)
  expected = reference.rms(reference.wide(x), EPS) * (
    1 + reference.wide(weight)
  )
  assert_close(out, expected, "float32")
  text = lowered(run, x, weight, kind=HOPPER)
  reduced = set(re.findall(r"stablehlo.reduce.*\(tensor<([0-9x]+)xf32>", text))
  assert reduced == {"1024x32"}


def test_a_decode_step_is_reduced_as_it_is():
  x, weight = values(2, 4, 32), values(1, 32)
  text = lowered(lambda x: residual_norm(x, weight, Norm()), x, kind=HOPPER)
  assert "1024x32" not in text


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
