"""Cost of prefill: counted, and fed to a placement."""

import numpy as np

from sparse_prefix_jax import preset
from sparse_prefix_jax.models import cost, sizes
from sparse_prefix_jax.placement import solve_placement


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
