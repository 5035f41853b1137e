"""What is on either side of a barrier compiles by itself, order and all."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import Chunks, map_rows
from tests.kernels.devices import HOPPER, lowered, traced_for

ORDERED = re.compile(r"@LayoutConstraint.*?result_layouts = \[dense<\[(.*?)\]>")


@pytest.mark.parametrize("gpu", [False, True])
def test_arrays_are_as_they_were(gpu):
  x = {"a": np.arange(6.0, dtype="f4").reshape(2, 3), "b": None, "c": 2.0}
  with traced_for(HOPPER) if gpu else contextlib.nullcontext():
    passed = barrier(x)
  assert passed["b"] is None
  np.testing.assert_array_equal(passed["a"], x["a"])
  assert passed["c"] == 2


def test_a_gpu_keeps_arrays_in_the_order_of_their_axes():
  x, y = jnp.zeros((2, 3, 4)), jnp.zeros(5)
  text = lowered(barrier, (x, y), kind=HOPPER)
  assert ORDERED.findall(text) == ["2, 1, 0"]
  assert "optimization_barrier" in text


def test_elsewhere_the_compiler_chooses():
  text = jax.jit(barrier).lower(jnp.zeros((2, 3))).as_text()
  assert "LayoutConstraint" not in text
  assert "optimization_barrier" in text


def test_keys_of_random_numbers_pass():
  keys = jax.random.split(jax.random.key(0), (2, 3))
  with traced_for(HOPPER):
    passed = jax.make_jaxpr(barrier)(keys)
  assert "layout_constraint" not in str(passed)


def test_what_goes_through_is_differentiable_on_a_gpu():
  def squares(x):
    return jnp.sum(barrier(x * x))

  with traced_for(HOPPER):
    gradient = jax.jit(jax.grad(squares))(jnp.full((2, 2), 3.0))
  np.testing.assert_array_equal(gradient, np.full((2, 2), 6.0))


def test_rows_are_ordered_on_both_sides_of_a_function():
  x = jnp.zeros((2, 64, 4))
  text = lowered(lambda x: map_rows(jnp.tanh, x), x, kind=HOPPER)
  assert ORDERED.findall(text) == ["1, 0", "1, 0"]


def test_a_layer_orders_as_much_on_every_rung():
  """Else a rung would leave the compiler a choice that another one does not."""
  config = preset("tiny", ladder=(16,))
  branch = HybridDecoder(config, rngs=nnx.Rngs(0)).branches[0].sub
  kept = config.branches[0].sub.keeps(config.width, config.numerics)

  def ordered(rung: int) -> list[str]:
    numbers = jnp.zeros(rung, jnp.int32)
    arguments = (
      jnp.zeros((rung, 64, config.width)),
      kept.zeros(slots=2, pages=2),
      Chunks(*[numbers] * 5),
      jnp.zeros((rung, 8), jnp.int32),
    )
    text = lowered(lambda *x: branch(*x), *arguments, kind=HOPPER)
    return ORDERED.findall(text)

  assert ordered(1) == ordered(16)
  assert len(ordered(1)) > 10
