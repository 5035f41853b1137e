"""Rotary embedding against a rotation of complex numbers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.layers import rotary
from tests.layers import reference

THETA = 1e7

rotate = jax.jit(rotary.rotate, static_argnums=(2, 3))


@pytest.mark.parametrize(
  ("dtype", "rotary_width"), [("float32", 2), ("float32", 32), ("bfloat16", 16)]
)
def test_equals_the_rotation(dtype, rotary_width):
  x = jax.random.normal(jax.random.key(0), (6, 3, 32)).astype(dtype)
  position = np.array([0, 1, 63, 64, 1000, 32767], np.int32)
  got = rotate(x, jnp.asarray(position), rotary_width, THETA)
  expected = reference.rotate(x, position, rotary_width, THETA)
  assert got.dtype == jnp.dtype(dtype)
  # An angle of 32,767 in float32 is known to 2e-3.
  early = 2e-4 if dtype == "float32" else 2e-2
  np.testing.assert_allclose(reference.wide(got)[:5], expected[:5], atol=early)
  np.testing.assert_allclose(reference.wide(got)[5], expected[5], atol=2e-2)
  np.testing.assert_array_equal(got[0], x[0])
  np.testing.assert_array_equal(got[..., rotary_width:], x[..., rotary_width:])


def test_products_depend_on_the_distance_alone():
  q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 32))

  def product(i, j):
    at = (jnp.array([p], jnp.int32) for p in (i, j))
    q_at, k_at = (rotate(x, p, 32, 1e4) for x, p in zip((q, k), at))
    return float((q_at * k_at).sum())

  assert product(5, 2) == pytest.approx(product(105, 102), abs=1e-4)
  assert abs(product(5, 2) - product(5, 3)) > 1e-3
