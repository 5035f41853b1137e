"""The wide product: right, and one set of bits for every row count."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.layers.dense import dense, kernel
from tests.kernels.devices import HOPPER, lowered
from tests.trees import assert_same_bits

product = jax.jit(dense, static_argnums=2)


def values(seed, *shape, dtype="float32"):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_product(dtype):
  x, weight = values(0, 2, 16, 64, dtype=dtype), values(1, 64, 96, dtype=dtype)
  y = product(x, weight, "highest")
  wide = (np.asarray(u).astype(np.float64) for u in (x, weight))
  expected = np.matmul(*wide)
  tolerance = 1e-6 if dtype == "float32" else 4e-3  # rounded once, at the end
  chex.assert_shape(y, (2, 16, 96))
  chex.assert_type(y, x.dtype)
  error = np.abs(np.asarray(y).astype(np.float64) - expected).max()
  assert error <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
  ("dtype", "inputs", "outputs"),
  [("float32", 64, 192), ("bfloat16", 256, 64)],
)
def test_rows_have_the_same_bits_in_any_program(dtype, inputs, outputs):
  x = values(0, 1024, inputs, dtype=dtype)
  weight = values(1, inputs, outputs, dtype=dtype)
  expected = np.asarray(product(x, weight, "highest"))
  for rows in (64, 128, 512):
    first = 1024 - rows
    y = product(x[first:], weight, "highest")
    assert_same_bits(y, expected[first:])


def test_kernel_has_variance_one_over_inputs():
  weight = kernel(nnx.Rngs(0), 256, 512, "bfloat16")
  chex.assert_shape(weight[...], (256, 512))
  chex.assert_type(weight[...], jnp.bfloat16)
  variance = np.asarray(weight[...]).astype(np.float64).var()
  assert variance == pytest.approx(1 / 256, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bias_is_added_before_rounding(dtype):
  x, weight = values(0, 128, 64, dtype=dtype), values(1, 64, 64, dtype=dtype)
  bias = nnx.Param(values(2, 64, dtype=dtype))
  biased = jax.jit(lambda x, bias: dense(x, weight, "highest", bias=bias))
  y = biased(x, bias)
  wide = (np.asarray(u).astype(np.float64) for u in (x, weight))
  expected = np.matmul(*wide) + np.asarray(bias[...]).astype(np.float64)
  tolerance = 1e-6 if dtype == "float32" else 4e-3
  error = np.abs(np.asarray(y).astype(np.float64) - expected).max()
  assert error <= tolerance * np.abs(expected).max()
  assert_same_bits(biased(x[64:], bias), y[64:])


@pytest.mark.parametrize(
  ("given", "rounds"), [("bfloat16", True), ("float32", False)]
)
def test_a_gpu_rounds_where_it_adds(given, rounds):
  x, weight = values(0, 128, 64, dtype=given), values(1, 64, 64, dtype=given)
  run = functools.partial(dense, precision="highest")
  program = lowered(run, x, weight, kind=HOPPER)
  (added,) = [x for x in program.splitlines() if "dot_general" in x]
  assert ("-> tensor<128x64xbf16>" in added) == rounds
