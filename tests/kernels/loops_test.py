"""Loops into buffers: the scan's values, types, gradients and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparse_prefix_jax.kernels.loops import scan_into_buffers
from tests.trees import assert_same_bits

WEIGHT = jnp.linspace(0.5, 2.0, 8)


def steps(n):
  random = np.random.default_rng(0)
  return jnp.asarray(random.normal(size=(n, 8)), jnp.float32)


def body(carry, x):
  """Results of several types; one takes part in the carry."""
  y = jnp.tanh(x * WEIGHT) + carry
  ones = y.astype(jnp.bfloat16), x > 0, jnp.int32(7), jnp.zeros(0)
  return carry + x.sum(), (y, *ones)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_values_and_types_are_those_of_a_scan(n):
  ours = jax.jit(lambda xs: scan_into_buffers(body, jnp.float32(1), xs))
  expected = jax.jit(lambda xs: lax.scan(body, jnp.float32(1), xs))
  got, want = ours(steps(n)), expected(steps(n))
  assert [x.dtype for x in jax.tree.leaves(got)] == [
    x.dtype for x in jax.tree.leaves(want)
  ]
  assert_same_bits(jax.tree.leaves(got), jax.tree.leaves(want))


def test_nothing_is_left_of_what_a_result_begins_as():
  xs = steps(4).at[0, 0].set(jnp.nan)
  _, y = scan_into_buffers(lambda c, x: (c, x[1:]), None, xs)
  assert_same_bits(y, xs[:, 1:])


@pytest.mark.parametrize(
  "xs",
  [
    jnp.zeros((3, 0)),
    jax.random.split(jax.random.key(0), 3),
    (jnp.arange(3), jax.random.split(jax.random.key(0), 3)),
  ],
)
def test_what_has_no_numbers_is_scanned(xs):
  carry, y = scan_into_buffers(lambda c, x: (c + 1, x), 0, xs)
  assert carry == 3 and jax.tree.map(jnp.shape, y) == jax.tree.map(
    jnp.shape, xs
  )


def test_the_gradient_is_that_of_the_scan():
  """Its backward loop, whose carry is no larger than a step."""

  def loss(scan):
    def total(weight, xs):
      def weighted(carry, x):
        return carry, jnp.tanh(x * weight)

      return jnp.sum(scan(weighted, None, xs)[1] ** 2)

    return jax.grad(total, argnums=(0, 1))

  arguments = WEIGHT, steps(5)
  ours, theirs = (loss(scan) for scan in (scan_into_buffers, lax.scan))
  assert_same_bits(ours(*arguments), theirs(*arguments))
  counts = [
    str(jax.make_jaxpr(f)(*arguments)).count("f32[5,8]") for f in (ours, theirs)
  ]
  assert counts[0] == counts[1]


def test_it_is_mapped_as_a_scan():
  xs = jnp.stack([steps(4), steps(4) + 1])

  def mapped(scan):
    return jax.vmap(lambda xs: scan(body, jnp.float32(0), xs))(xs)

  ours, theirs = (mapped(scan) for scan in (scan_into_buffers, lax.scan))
  assert_same_bits(jax.tree.leaves(ours), jax.tree.leaves(theirs))


def test_no_tracer_is_left_of_what_the_body_closes_over():
  """`jax_check_tracer_leaks` looks into what a program keeps of it."""

  def scaled(count, xs):
    def body(carry, x):
      return carry, jnp.where(count > 1, 2 * x, x)

    return scan_into_buffers(body, None, xs)[1]

  with jax.checking_leaks():
    got = jax.jit(scaled)(jnp.int32(2), steps(3))
  assert_same_bits(got, 2 * steps(3))
