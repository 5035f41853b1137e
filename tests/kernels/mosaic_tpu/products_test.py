"""Products in bfloat16 parts: how exact they are, and who takes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparse_prefix_jax.kernels.mosaic_tpu import products
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config
from tests.kernels.matrix_suite import each_operation, operation_at

SPLIT = products.Products(lax.Precision.HIGHEST, split=True)


def computed(seed, *shape):
  """Float32 numbers that need all of their bits."""
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def inputs(seed, *shape):
  """The same in bfloat16."""
  return jnp.asarray(computed(seed, *shape), jnp.bfloat16)


def error(x, y):
  """Of their product, against what could be at most."""
  x64, y64 = (np.asarray(z, np.float64) for z in (x, y))
  found = np.asarray(SPLIT(jnp.asarray(x), jnp.asarray(y)), np.float64)
  return np.max(np.abs(found - x64 @ y64) / (np.abs(x64) @ np.abs(y64)))


def test_inputs_are_exact_up_to_adding():
  assert error(inputs(0, 64, 128), inputs(1, 128, 64)) < 2**-21


@pytest.mark.parametrize("left", [computed, inputs])
def test_what_is_computed_keeps_two_parts(left):
  assert error(left(0, 64, 128), computed(1, 128, 64)) < 2**-16


@pytest.mark.parametrize(
  ("contract", "x", "y"),
  [
    ((1, 0), (16, 64), (64, 32)),
    ((1, 1), (16, 64), (32, 64)),
    ((0, 0), (64, 16), (64, 32)),
  ],
)
def test_any_axis_is_summed_over(contract, x, y):
  x, y = jnp.asarray(computed(0, *x)), jnp.asarray(computed(1, *y))
  expected = products.dot(x, y, lax.Precision.HIGHEST, contract)
  found = SPLIT(x, y, contract)
  assert np.max(np.abs(found - expected)) < 1e-3


def test_parts_have_all_bits_of_a_number():
  x = jnp.asarray(computed(0, 16, 128) * np.float32(1e30))
  diagonal = jnp.eye(16, dtype=jnp.float32)
  assert np.array_equal(products.masked_sums(diagonal, x), x)


def test_a_sum_of_all_heads_is_that_of_each():
  mask, x = jnp.tril(jnp.ones((16, 16))), jnp.asarray(computed(0, 3, 16, 128))
  found = jax.vmap(lambda x: products.masked_sums(mask, x))(x)
  each = jnp.stack([products.masked_sums(mask, head) for head in x])
  assert np.array_equal(found, each)


@pytest.mark.parametrize("types", [("float32",), ("bfloat16", "float32")])
def test_float32_inputs_are_not_split(types):
  xs = [jnp.zeros(8, x) for x in types]
  assert not products.products_of(lax.Precision.HIGHEST, *xs).split


@each_operation
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_six_passes_are_for_float32_inputs(name, dtype):
  operation = operation_at(name, (1, 2, 64, 64), dtype)
  config = Config(interpret=True)
  program = jax.make_jaxpr(
    lambda *x: operation.packed(*x, implementation=config)
  )(*operation.empty_call(2, 4))
  assert ("HIGHEST" in str(program)) == (dtype == "float32")
