"""Matrices of one chunk: systems of any size, in what Mosaic can do."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparse_prefix_jax.kernels import chunk_algebra
from sparse_prefix_jax.kernels.mosaic_gpu import chunk
from sparse_prefix_jax.kernels.mosaic_tpu import algebra, products
from tests.kernels.matrix_suite import operation_at
from tests.kernels.mosaic_tpu.suite import assert_lowers

EXACT = products.Products(lax.Precision.HIGHEST, split=False)


def system(size):
  """A unit lower triangular system of 2 heads, and right-hand sides."""
  random = np.random.default_rng(size)
  lower = np.tril(random.standard_normal((2, size, size), np.float32), -1)
  return 0.1 * lower, random.standard_normal((2, size, 8), np.float32)


def solve(lower, right):
  return jax.vmap(lambda x, y: algebra.solve_unit_lower(x, y, EXACT))(
    lower, right
  )


def gathered_lanes(jaxpr):
  """The lanes of all that is gathered from, in loops and calls too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "gather":
      yield equation.invars[0].aval.shape[-1]
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from gathered_lanes(inner)


@pytest.mark.parametrize("size", [64, 144, 256])
def test_systems_of_any_size_are_solved(size):
  lower, right = system(size)
  expected = np.linalg.solve(np.eye(size) + lower.astype(np.float64), right)
  found = jax.jit(solve)(lower, right)
  assert np.max(np.abs(found - expected)) < 1e-5 * np.max(np.abs(expected))


@pytest.mark.parametrize("size", [64, 144, 256])
def test_nothing_is_gathered_from_several_registers(size):
  found = list(gathered_lanes(jax.make_jaxpr(solve)(*system(size)).jaxpr))
  assert found
  assert max(found) <= 128


@pytest.mark.parametrize("name", ["gated_delta_rule", "kimi_delta_attention"])
def test_long_chunks_are_taken(name):
  sizes = (1, 1, 128, 128)
  operation = operation_at(name, sizes, "bfloat16", chunk=256)
  assert_lowers(operation, "TPU v5 lite")


@pytest.mark.parametrize("kernels", [chunk_algebra, algebra, chunk])
def test_the_least_numbers_are_resets_too(kernels):
  """Masks often are; in bfloat16 they would be rounded to -inf, and be NaN."""
  least = np.finfo(np.float32).min
  given = np.array([-np.inf, least, -1e30, -1, 0, np.nan], np.float32)
  settled = np.asarray(kernels.settle_resets(jnp.asarray(given[None])))[0]
  assert np.array_equal(settled[2:], given[2:], equal_nan=True)
  assert (settled[:2] == np.float32(-1e36)).all()
  rounded = lax.reduce_precision(settled, 8, 7)
  assert np.isfinite(settled[:5] - rounded[:5]).all()
