"""The wide product: right, and one set of bits for every row count."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.layers import Numerics
from sparse_prefix_jax.layers.dense import (
  dense,
  dense_each,
  kernel,
  product,
  product_of_few,
  taps,
)
from tests.kernels.devices import HOPPER, lowered, traced_for
from tests.trees import assert_same_bits

wide_product = jax.jit(dense, static_argnums=2)


def values(seed, *shape, dtype="float32"):
  drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
  return drawn.astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_product(dtype):
  x, weight = values(0, 2, 16, 64, dtype=dtype), values(1, 96, 64, dtype=dtype)
  y = wide_product(x, weight, Numerics())
  wide, columns = (np.asarray(u).astype(np.float64) for u in (x, weight))
  expected = wide @ columns.T
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
  weight = values(1, outputs, inputs, dtype=dtype)
  x = x.reshape(16, 64, inputs)
  expected = np.asarray(wide_product(x, weight, Numerics()))
  for chunks in (1, 2, 8):
    y = wide_product(x[-chunks:], weight, Numerics())
    assert_same_bits(y, expected[-chunks:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [2, 3, 16, 17, 40])
def test_a_row_of_a_step_has_one_set_of_bits(rows, dtype):
  """Wherever it stands, and whatever stands beside it."""
  x, weight = values(0, rows, 320, dtype=dtype), values(1, 192, 320)
  weight = weight.astype(jnp.dtype(dtype))
  y = np.asarray(wide_product(x, weight, Numerics()))
  turned = wide_product(np.roll(x, 1, axis=0), weight, Numerics())
  assert_same_bits(turned, np.roll(y, 1, axis=0))
  lonely = np.concatenate([x[:1], np.zeros_like(x[1:])])
  alone = np.asarray(wide_product(lonely, weight, Numerics()))
  assert_same_bits(alone[:1], y[:1])
  wide = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
  tolerance = 1e-6 if dtype == "float32" else 4e-3
  apart = np.abs(np.asarray(y, np.float64) - wide).max()
  assert apart <= tolerance * np.abs(wide).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("inputs", "outputs"), [(128, 320), (64, 32), (1024, 32), (20, 2)]
)
def test_rows_of_a_narrow_product_have_the_bits_of_many(inputs, outputs, dtype):
  """Narrow products, of a chunk or of a step."""
  rows = values(0, 256, inputs, dtype=dtype)
  weight = values(1, outputs, inputs, dtype=dtype)
  one = jax.jit(product, static_argnums=2)
  expected = np.asarray(one(rows, weight, "highest"))
  for count in (63, 64, 128):
    assert_same_bits(one(rows[:count], weight, "highest"), expected[:count])
    last = one(rows[-count:], weight, "highest")
    assert_same_bits(last, expected[-count:])


@pytest.mark.parametrize(
  ("make", "shape"), [(kernel, (512, 256)), (taps, (256, 512))]
)
def test_a_weight_has_variance_one_over_inputs(make, shape):
  weight = make(nnx.Rngs(0), 256, 512, "bfloat16")
  chex.assert_shape(weight[...], shape)
  chex.assert_type(weight[...], jnp.bfloat16)
  variance = np.asarray(weight[...]).astype(np.float64).var()
  assert variance == pytest.approx(1 / 256, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bias_is_added_before_rounding(dtype):
  x, weight = values(0, 2, 64, 64, dtype=dtype), values(1, 64, 64, dtype=dtype)
  weight, bias = jnp.asarray(weight), nnx.Param(values(2, 64, dtype=dtype))
  biased = jax.jit(lambda x, bias: dense(x, weight, Numerics(), bias=bias))
  y = np.asarray(biased(x, bias))
  wide, columns = (np.asarray(u).astype(np.float64) for u in (x, weight))
  expected = wide @ columns.T + np.asarray(bias[...]).astype(np.float64)
  tolerance = 1e-6 if dtype == "float32" else 4e-3
  error = np.abs(np.asarray(y).astype(np.float64) - expected).max()
  assert error <= tolerance * np.abs(expected).max()
  assert_same_bits(biased(x[1:], bias), y[1:])


@pytest.mark.parametrize(
  ("given", "rounds"), [("bfloat16", True), ("float32", False)]
)
def test_a_gpu_rounds_where_it_adds(given, rounds):
  x, weight = values(0, 128, 64, dtype=given), values(1, 64, 64, dtype=given)
  run = functools.partial(dense, numerics=Numerics())
  program = lowered(run, x, weight, kind=HOPPER)
  (added,) = [x for x in program.splitlines() if "dot_general" in x]
  assert ("-> tensor<128x64xbf16>" in added) == rounds


@pytest.mark.parametrize(
  ("rows", "products"), [(0, 1), (1, 1), (16, 1), (64, 4), (65, 1), (2048, 1)]
)
def test_many_rows_are_one_product(rows, products):
  """Training gives thousands to the head, and nobody may give none."""
  run = jax.jit(product_of_few, static_argnums=2)
  x, weight = (np.ones((n, 64), np.float32) for n in (rows, 128))
  program = run.lower(x, weight, "highest").as_text()
  assert program.count("stablehlo.dot_general") == products
  chex.assert_trees_all_close(run(x, weight, "highest"), x @ weight.T)


def test_weights_of_one_input_are_those_of_each_alone():
  shapes = (5, 64), (8, 64), (8, 64), (8,)
  x, *drawn = (
    jnp.asarray(values(seed, *shape, dtype="bfloat16"))
    for seed, shape in enumerate(shapes)
  )
  *weights, bias = *drawn[:2], nnx.Param(drawn[2])
  together = dense_each(x, weights, Numerics(), biases=(None, bias))
  for y, weight, own in zip(together, weights, (None, bias), strict=True):
    assert_same_bits(y, dense(x, weight, Numerics(), bias=own))


@pytest.mark.parametrize(
  ("implementation", "kernels"), [("auto", 1), ("xla", 0)]
)
def test_a_step_on_a_gpu_reads_weights_of_one_input_at_once(
  implementation, kernels
):
  x = jnp.zeros((16, 128), jnp.bfloat16)
  weights = [jnp.zeros((64, 128), jnp.bfloat16)] * 2
  numerics = Numerics(implementation=implementation, dtype="bfloat16")
  run = functools.partial(dense_each, weights=weights, numerics=numerics)
  program = lowered(run, x, kind=HOPPER)
  assert program.count("stablehlo.custom_call @mosaic_gpu") == kernels
  assert program.count("stablehlo.dot_general") == 2 * (1 - kernels)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
  ("weights", "biases", "message"),
  [
    (0, (), "dense_each has no weight; it takes one or more."),
    (2, (None,), "dense_each has 1 biases for 2 weights; it takes one for"),
    (1, (None, None), "dense_each has 2 biases for 1 weights"),
  ],
)
def test_what_is_no_product_of_each_is_refused(weights, biases, message, gpu):
  x, own = jnp.zeros((16, 128)), [jnp.zeros((64, 128))] * weights
  around = traced_for(HOPPER) if gpu else contextlib.nullcontext()
  with around, pytest.raises(ValueError, match=message):
    dense_each(x, own, Numerics(), biases=biases)


@pytest.mark.usefixtures("unchecked_types")
def test_a_precision_in_the_place_of_numerics_is_refused():
  with pytest.raises(ValueError, match="numerics is 'highest'; it must be the"):
    dense(jnp.zeros((2, 4)), jnp.zeros((3, 4)), "highest")
