"""row_products: XLA's form, and the GPU's in the interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.implementations import DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from sparse_prefix_jax.kernels.row_products import row_products
from tests.kernels.devices import BLACKWELL, HOPPER, lowered, traced_for
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.trees import assert_same_bits

KERNEL = interpreted(MosaicGpuConfig(stages=2))
# Rows, inputs, outputs of each weight: one range of inputs, and several.
SHAPES = [(16, 256, (64, 128)), (8, 512, (64,)), (64, 128, (64,))]


def given(rows, inputs, outputs, dtype="bfloat16"):
  random = np.random.default_rng(0)
  x, *weights = (
    jnp.asarray(random.standard_normal((n, inputs), np.float32), dtype)
    for n in (rows, *outputs)
  )
  return x, weights


def run(x, weights, implementation=KERNEL):
  gpu = OnGpu()
  multiply = functools.partial(row_products, implementation=implementation)
  with gpu.around():
    out = jax.tree.map(np.asarray, jax.jit(multiply)(x, weights))
  gpu.after_each()
  return out


def exact(x, weight):
  return np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_equal_exact_products_rounded_once(shape):
  x, weights = given(*shape)
  found = run(x, weights)
  for out, weight in zip(found, weights, strict=True):
    expected = exact(x, weight)
    # A sum rounded in float32, then to 8 bits.
    within = 2.0**-8 * np.abs(expected) + 1e-5 * np.abs(expected).max()
    assert out.dtype == jnp.bfloat16
    assert (np.abs(out.astype(np.float64) - expected) <= within).all()


def test_a_row_has_the_same_bits_in_any_place_beside_any_others():
  x, weights = given(*SHAPES[0])
  order = np.random.default_rng(1).permutation(16)
  (one, two), (first, second) = run(x, weights), run(x[order], weights)
  assert_same_bits(first, one[order])
  assert_same_bits(second, two[order])
  others = x.at[1:].set(jnp.nan)
  alone = run(others, weights)
  assert_same_bits(alone[0][0], one[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_elsewhere_xla_multiplies(dtype):
  x, weights = given(3, 5, (2, 7), dtype)
  found = row_products(x, weights, precision="highest")
  for out, weight in zip(found, weights, strict=True):
    assert out.dtype == x.dtype
    np.testing.assert_allclose(
      out.astype(jnp.float32),
      exact(x, weight),
      rtol=2.0**-7 if dtype == "bfloat16" else 1e-5,
      atol=1e-5,
    )


def test_is_picked_and_lowers():
  x, weights = given(16, 1024, (3584, 3584))
  text = lowered(row_products, x, weights, kind=HOPPER)
  assert text.count("row_products") >= 1
  assert "dot_general" not in text


def test_a_gradient_is_that_of_xla():
  x, weights = given(8, 128, (64,))

  def total(x, implementation):
    (out,) = row_products(x, weights, implementation=implementation)
    return jnp.sum(out.astype(jnp.float32))

  with traced_for(HOPPER):
    found = jax.jit(jax.grad(lambda x: total(x, KERNEL)))(x)
  assert_same_bits(found, jax.jit(jax.grad(lambda x: total(x, "xla")))(x))


@pytest.mark.parametrize(
  ("shape", "dtype", "reason"),
  [
    ((16, 128, (64,)), "float32", "takes bfloat16 only"),
    ((12, 128, (64,)), "bfloat16", "takes 8 rows or a multiple, 64 at most"),
    ((72, 128, (64,)), "bfloat16", "64 at most, and these are 72"),
    (
      (16, 192, (64,)),
      "bfloat16",
      "multiples of 128 inputs, and these are 192",
    ),
    ((16, 128, (64, 65)), "bfloat16", "outputs, and these are 64, 65"),
    ((16, 128, (64 * 133,)), "bfloat16", "takes 8448 outputs at most"),
  ],
)
def test_what_does_not_fit_is_refused(shape, dtype, reason):
  x, weights = given(*shape, dtype=dtype)
  with traced_for(HOPPER), pytest.raises(DoesNotFit, match=reason):
    row_products(x, weights, implementation=KERNEL)


def test_blackwell_takes_xla():
  x, weights = given(16, 128, (64,))
  assert "dot_general" in lowered(row_products, x, weights, kind=BLACKWELL)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x, w: (x, []), "one or more, and got none"),
    (lambda x, w: (x, w[0]), "one or more, and got an array"),
    (lambda x, w: ([[1.0, 2.0]], w), "x of row_products is a list; it must be"),
    (lambda x, w: (x.astype(int), w), "it must be floating point"),
    (lambda x, w: (x[0], w), r"x of row_products has shape .* must be \[b i\]"),
    (
      lambda x, w: (x, [w[0][:, 1:]]),
      r"weights\[0\] of row_products has shape",
    ),
    (lambda x, w: (x.astype("float32"), w), "they must be of one dtype"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_product_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    row_products(*change(*given(8, 128, (64,))))
