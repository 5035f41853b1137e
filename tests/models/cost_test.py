"""Cost of prefill: counted, and fed to a placement."""

import numpy as np
import pytest

from sparse_prefix_jax import PrefillCost, preset
from sparse_prefix_jax.models import cost, sizes
from sparse_prefix_jax.placement import solve_placement

# What is no number of these types is what some tests give.
unchecked = pytest.mark.usefixtures("unchecked_types")
NAN, INFINITE = float("nan"), float("inf")
HUGE = pytest.param(10**400, id="huge")


def test_flops_count_every_product_of_the_layer_group():
  config = preset("qwen3_5_0_8b_group")
  flops = cost.prefill_flops(config)
  d, hidden = 1024, 3584
  recurrent_products = 2 * d * (6144 + 2048 + 2048 + 32)
  attention_products = 2 * d * (2 * 2048 + 512 + 512 + 2048)
  products = 3 * recurrent_products + attention_products + 4 * 6 * d * hidden
  convolution = 3 * 2 * 4 * 6144
  # Per token and value head of 128 x 128: K K^T, Q K^T, the solve, their
  # products with values and with the state.
  rule = 3 * 16 * (4 * 64 * 128 + 2 * 64 * 128 + 64 * 256 + 6 * 128 * 128)
  assert flops.linear == products + convolution + rule
  assert flops.quadratic == 2 * 8 * 256


def test_cumulative_starts_at_zero_and_never_falls():
  cumulative = cost.prefill_flops(preset("tiny")).cumulative(50, chunk=64)
  assert cumulative[0] == 0
  assert np.all(np.diff(cumulative) > 0)
  assert np.all(np.diff(cumulative, 2) > 0)  # attention: convex


def test_quadratic_cost_moves_states_deeper():
  weights = np.ones(64)
  linear = solve_placement(weights, 1, np.arange(64.0))
  convex = solve_placement(weights, 1, np.arange(64.0) ** 2)
  assert int(convex.positions[0]) > int(linear.positions[0])


def test_sizes_are_those_of_the_models():
  config = preset("qwen3_5_0_8b_group")
  assert sizes.state_bytes(config) == 3 * (16 * 128 * 128 * 4 + 3 * 6144 * 4)
  assert sizes.page_bytes(config) == 2 * 64 * 2 * 256 * 4


@unchecked
@pytest.mark.parametrize(
  "depth", [-1, -0.5, NAN, INFINITE, "2", None, True, [3, -1], [[NAN]], 1j]
)
def test_nothing_but_depths_costs_anything(depth):
  with pytest.raises(ValueError, match="tokens"):
    PrefillCost(2.0, 0.5, "flops").at(depth)


@unchecked
@pytest.mark.parametrize("field", ["linear", "quadratic"])
@pytest.mark.parametrize("value", [None, "2", True, NAN, INFINITE, HUGE, []])
def test_a_cost_that_is_no_number_is_said(field, value):
  wrong = PrefillCost(2.0, 0.5, "flops")._replace(**{field: value})
  for call in (lambda: wrong.at([1, 2]), lambda: wrong.cumulative(3, 64)):
    with pytest.raises(
      ValueError, match=rf"^{field} of a cost is .*finite number\.$"
    ):
      call()


@unchecked
@pytest.mark.parametrize("count", [0, -1, HUGE, np.uint64(2**63), 2**62])
def test_lattices_have_sizes_that_a_number_can_tell(count):
  cost = PrefillCost(2.0, 0.5, "flops")
  with pytest.raises(ValueError, match=r"^chunk is .*\.$"):
    cost.cumulative(3, count)
  if count:
    with pytest.raises(ValueError, match=r"^depths is .*\.$"):
      cost.cumulative(count, 64)


@unchecked
def test_depths_may_be_arrays_of_any_kind_of_number():
  cost = PrefillCost(np.float32(2.0), 1, "flops")
  assert cost.at(np.array([0, 3], np.uint8)).tolist() == [0.0, 15.0]
  assert float(cost.at(2.5)) == 11.25
