import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_prefix_jax.placement import (
  dynamic_program,
  linear_cost,
  quadratic_cost,
  solve_placement,
)
from tests.placement import reference


def check_against(weights, cost, budget, expected, placement):
  """The objective is right, and it is the one of the positions."""
  assert int(placement.objective) == expected
  positions = np.asarray(placement.positions)
  assert positions.shape == (budget,) and positions.dtype == np.int32
  kept = positions[positions >= 0]
  np.testing.assert_array_equal(positions[: len(kept)], kept)
  assert (positions[len(kept) :] == -1).all()
  assert (np.diff(kept) > 0).all() and (kept > 0).all()
  assert reference.objective(weights, cost, kept.tolist()) == expected
  assert bool(placement.valid) and float(placement.loss_bound) == 0.0


# A few sizes only: every (N, budget) is a program of its own.
@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.data())
def test_equals_exhaustive_search(data):
  depths, budget = data.draw(st.sampled_from([(2, 1), (5, 2), (8, 3), (9, 11)]))
  count = st.lists(st.integers(0, 9), min_size=depths, max_size=depths)
  weights = data.draw(count.filter(any))
  cost = np.cumsum([0, *data.draw(count)[1:]]).tolist()
  integer = data.draw(st.sampled_from(["int32", "int64"]))
  placement = solve_placement(weights, budget, cost, integer=integer)
  assert placement.objective.dtype == integer
  expected = reference.exhaustive(weights, cost, budget)
  check_against(weights, cost, budget, expected, placement)


@pytest.mark.parametrize(
  "depths, budget", [(33, 5), (64, 7), (100, 99), (9001, 2)]
)
@pytest.mark.parametrize("shape", ["random", "peaked", "stairs"])
def test_equals_plain_solver(depths, budget, shape):
  rng = np.random.default_rng(depths)
  weights = rng.integers(0, 50, depths)
  cost = np.arange(depths)
  if shape == "peaked":
    weights = weights * (rng.random(depths) < 0.05) + (cost == depths // 2)
    cost = cost + cost * cost // 8
  elif shape == "stairs":
    cost = np.cumsum(rng.integers(0, 3, depths) * (rng.random(depths) < 0.2))
    cost = cost - cost[0]
  placement = solve_placement(weights, budget, cost)
  expected = reference.plain(weights, cost, budget)
  check_against(weights, cost, budget, expected, placement)


def test_integer_type_is_chosen_by_size():
  assert solve_placement([1, 2**30], 1).objective.dtype == np.int32
  large = solve_placement([1, 2**31], 1)
  assert large.objective.dtype == np.int64 and int(large.objective) == 0
  assert not jax.config.read("jax_enable_x64")


def test_large_weights_that_cost_nothing():
  placement = solve_placement([2**40, 2**40], 1, [0, 0])
  assert placement.objective.dtype == np.int64 and bool(placement.valid)
  assert float(placement.expected_recompute) == 0.0


def test_int64_is_exact_where_int32_cannot_be():
  rng = np.random.default_rng(3)
  weights = rng.integers(0, 2**40, 300)
  placement = solve_placement(weights, 6)
  expected = reference.plain(weights, np.arange(300), 6)
  check_against(weights, range(300), 6, expected, placement)


def test_inside_jit_and_under_vmap():
  rng = np.random.default_rng(4)
  weights = rng.integers(0, 100, (5, 96)).astype(np.int32)
  for integer in ("int32", "int64"):
    solve = jax.jit(
      jax.vmap(lambda w, i=integer: solve_placement(w, 4, integer=i))
    )
    placements = solve(weights)
    assert placements.valid.all()
    for row, objective in zip(weights, np.asarray(placements.objective)):
      expected = reference.plain(row.astype(np.int64), np.arange(96), 4)
      assert int(objective) == expected


def test_many_costs_under_vmap():
  weights = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
  costs = np.cumsum(np.arange(24).reshape(3, 8) % 5, axis=1).astype(np.int32)
  costs -= costs[:, :1]
  solve = jax.vmap(lambda c: solve_placement(weights, 2, c, integer="int32"))
  for cost, objective in zip(costs, np.asarray(solve(costs).objective)):
    assert objective == reference.exhaustive(weights, cost, 2)


def decayed_histogram(depths, observations=6000, seed=0):
  """Counts as a server has them: peaks, a tail, and a decay of 0.99."""
  rng = np.random.default_rng(seed)
  peaks = rng.integers(1, depths, 12)
  seen = np.where(
    rng.random(observations) < 0.6,
    rng.choice(peaks, observations),
    (rng.random(observations) ** 3 * depths).astype(int),
  )
  counts = np.zeros(depths)
  for depth in seen:
    counts *= 0.99
    counts[depth] += 1
  return counts


@pytest.mark.parametrize("integer", ["int32", "int64"])
def test_loss_of_rounded_weights_is_bounded(integer):
  weights = decayed_histogram(300)
  cost = quadratic_cost(300, 0.013)
  placement = solve_placement(weights, 5, cost, integer=integer)
  best = reference.plain(weights, cost, 5) / weights.sum()
  kept = np.asarray(placement.positions).tolist()
  reached = reference.objective(weights, cost, kept) / weights.sum()
  bound = float(placement.loss_bound)
  assert -1e-9 * best <= reached - best <= bound + 1e-9 * best
  assert bound < (0.05 if integer == "int32" else 1e-4) * best
  np.testing.assert_allclose(
    float(placement.expected_recompute), reached, rtol=1e-6, atol=bound
  )


def test_decayed_histogram_of_4096_bins():
  weights = decayed_histogram(4096)
  placement = solve_placement(weights, 4)
  best = reference.plain(weights, np.arange(4096.0), 4)
  kept = np.asarray(placement.positions).tolist()
  reached = reference.objective(weights, np.arange(4096.0), kept)
  assert reached <= best * (1 + 1e-12)
  # What int32 rounds away is why floats are solved in int64.
  coarse = solve_placement(weights, 4, integer="int32")
  assert float(coarse.loss_bound) > 100 * float(placement.loss_bound)


def test_floats_that_are_counts_lose_nothing():
  weights = np.array([0.0, 5, 0, 1, 9, 0], np.float32)
  for values in (weights, jnp.asarray(weights), weights.astype(np.float16)):
    placement = solve_placement(values, 2)
    assert placement.positions.tolist() == [1, 4]
    assert float(placement.loss_bound) == 0.0
    assert int(placement.objective) == 2 * float(placement.scale)


def test_integer_weights_with_a_scaled_cost():
  weights = np.array([4, 3, 2, 9, 1, 7])
  cost = np.array([0.0, 0.1, 0.3, 0.35, 1.0, 1.7])
  placement = solve_placement(weights, 2, cost)
  expected = reference.exhaustive(weights, cost, 2) / weights.sum()
  np.testing.assert_allclose(placement.expected_recompute, expected, rtol=1e-6)


def test_no_budget_and_nothing_to_gain():
  empty = solve_placement([1, 2, 3], 0)
  assert empty.positions.shape == (0,) and int(empty.objective) == 8
  misses = solve_placement([7, 0, 0], 2)
  assert misses.positions.tolist() == [-1, -1] and bool(misses.valid)
  assert solve_placement([0, 1], 5).positions.tolist() == [1, -1, -1, -1, -1]


@pytest.mark.parametrize("bad", [[0, 0, 0], [1, -1, 2]])
def test_bad_weights_under_jit_are_not_valid(bad):
  solve = jax.jit(lambda w: solve_placement(w, 2, integer="int32"))
  placement = solve(jnp.asarray(bad, jnp.int32))
  assert not bool(placement.valid)
  assert placement.positions.tolist() == [-1, -1]


@pytest.mark.parametrize(
  "weights, cost",
  [
    ([1.0, np.nan, 2.0], [0.0, 1.0, 2.0]),
    ([1.0, np.inf, 2.0], [0.0, 1.0, 2.0]),
    ([1.0, 1.0, 2.0], [0.0, 2.0, 1.0]),
    ([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]),
    ([1.0, 1.0, 2.0], [0.0, 2.0, np.nan]),
  ],
)
def test_bad_floats_under_jit_are_not_valid(weights, cost):
  placement = jax.jit(lambda w, f: solve_placement(w, 2, f))(
    jnp.asarray(weights, jnp.float32), jnp.asarray(cost, jnp.float32)
  )
  assert not bool(placement.valid)
  assert placement.positions.tolist() == [-1, -1]


def test_too_large_for_int32_under_jit_is_not_valid():
  solve = jax.jit(lambda w: solve_placement(w, 1, integer="int32"))
  assert not bool(solve(jnp.full((100,), 2**28, jnp.int32)).valid)


@pytest.mark.parametrize(
  "dtype, large, integer",
  [
    (np.uint32, 2**32 - 1, "int32"),
    (np.int64, 2**32 + 1, "int32"),
    (np.uint64, 2**64 - 1, "int64"),
  ],
)
def test_integers_that_would_wrap_under_jit_are_not_valid(
  dtype, large, integer
):
  solve = jax.jit(lambda w: solve_placement(w, 1, integer=integer))
  scaled = jax.jit(lambda f: solve_placement([0.5] * 4, 1, f, integer=integer))
  with jax.enable_x64(True):
    fitting = solve(jnp.asarray(np.array([5, 9, 7, 0], dtype)))
    placement = solve(jnp.asarray(np.array([5, large, 7, 0], dtype)))
    costly = scaled(jnp.asarray(np.array([0, 1, large, large], dtype)))
  assert bool(fitting.valid) and fitting.positions.tolist() == [1]
  for refused in (placement, costly):
    assert not bool(refused.valid) and int(refused.objective) == 0
    assert refused.positions.tolist() == [-1]


def test_the_largest_product_under_jit_is_exact():
  solve = jax.jit(lambda w: solve_placement(w, 0, integer="int32"))
  fitting = solve(jnp.asarray([0, 2**31 - 1], jnp.int32))
  assert bool(fitting.valid) and int(fitting.objective) == 2**31 - 1
  assert not bool(solve(jnp.asarray([1, 2**31 - 1], jnp.int32)).valid)
  # Three of these wrap to a positive number.
  wrapped = solve(jnp.full((3,), 2**31 - 1, jnp.int32))
  assert not bool(wrapped.valid)


@pytest.mark.parametrize("integer", ["int32", "int64"])
@pytest.mark.parametrize(
  "weights",
  [
    np.array([0, 1e308, 1e308, 0]),
    np.array([0, 1e-300, 1e-300, 0]),
    np.array([1e-300, 1e300, 1e300, 0]),
    np.array([0, 3e38, 3e38, 0], np.float32),
    np.array([0, 2e-38, 2e-38, 0], np.float32),
  ],
)
def test_floats_near_the_ends_of_their_type(weights, integer):
  placement = solve_placement(weights, 1, integer=integer)
  assert placement.positions.tolist() == [1] and bool(placement.valid)
  np.testing.assert_allclose(placement.expected_recompute, 0.5, rtol=1e-6)
  assert 0 <= float(placement.loss_bound) < 1e-2
  if weights.tolist() == [1e-300, 1e300, 1e300, 0]:  # One of them is lost.
    assert float(placement.loss_bound) > 0


@pytest.mark.parametrize("size", [1e-30, 1e37])
def test_costs_near_the_ends_of_float32(size):
  cost = np.array([0, 1, 2, 3]) * size
  placement = solve_placement([0.0, 1.0, 1.0, 0.0], 1, cost)
  assert placement.positions.tolist() == [1]
  np.testing.assert_allclose(placement.expected_recompute, size / 2, rtol=1e-6)
  assert 0 <= float(placement.loss_bound) < 1e-3 * size
  # A weight that is lost costs less than float32 has a number for, not nothing.
  placement = solve_placement([0.0, 1e-60, 1.0, 0.0], 1, cost)
  assert 0 < float(placement.loss_bound) < 1e-3 * size


def test_costs_beyond_float32_under_jit_are_not_valid():
  with jax.enable_x64(True):
    cost = jnp.asarray([0.0, 1e300])
    placement = jax.jit(lambda f: solve_placement([1, 1], 1, f))(cost)
  assert not bool(placement.valid) and placement.positions.tolist() == [-1]


@pytest.mark.parametrize("dtype", [">f8", ">i4", ">u2"])
def test_other_byte_orders(dtype):
  weights = np.array([0, 5, 0, 1, 9, 0], dtype)
  assert solve_placement(weights, 2).positions.tolist() == [1, 4]


@pytest.mark.parametrize(
  "weights, budget, cost, sentence",
  [
    ([1, -2, 3], 1, None, "weights must not be negative, got -2 at depth 1"),
    ([1.0, np.nan], 1, None, "weights must be finite, got nan at depth 1"),
    ([0, 0, 0], 1, None, "weights must not all be zero"),
    ([4], 1, None, "at least two depths"),
    ([[1, 2], [3, 4]], 1, None, "one-dimensional"),
    (["a", "b"], 1, None, "weights must be real numbers"),
    ([True, False], 1, None, "weights must be real numbers"),
    ([1, 2 + 3j], 1, None, "weights must be real numbers .* got dtype complex"),
    (np.ones(2, np.longdouble), 1, None, "weights must be real numbers of at"),
    (np.ones(2, "m8[s]"), 1, None, "weights must be real numbers of at most"),
    (np.full(2, 1e-45, "f4"), 1, None, "not all be below 1.2e-38, got at most"),
    ([0.0, 5e-324], 1, None, "weights must not all be below 2.2e-308"),
    ([1, 2], 1, [0.0, 1e300], "cost must stay below 3.4e\\+38"),
    ([1, 2], 2**31, None, "budget must be below 2\\*\\*31, got 2147483648"),
    ([1, 2], -1, None, "budget must not be negative, got -1"),
    ([1, 2, 3], 1, [0, 2, 1], "cost must not decrease, got 1 after 2"),
    ([1, 2, 3], 1, [1, 2, 3], "cost must be 0 at depth 0, got 1"),
    ([1, 2, 3], 1, [0, 1], "cost must have one value per depth"),
    ([1, 2, 3], 1, [0, 1, np.inf], "cost must be finite"),
    ([2**62, 2**62], 1, None, "below 2\\*\\*62"),
  ],
)
def test_bad_input_is_refused(weights, budget, cost, sentence):
  with pytest.raises(ValueError, match=sentence):
    solve_placement(weights, budget, cost)


def test_bad_integer_types_are_refused():
  with pytest.raises(ValueError, match="int32, int64 or None, got 'int8'"):
    solve_placement([1, 2], 1, integer="int8")
  with pytest.raises(ValueError, match="below 2\\*\\*31"):
    solve_placement([1, 2**31], 1, integer="int32")
  with pytest.raises(ValueError, match="do not fit int32"):
    solve_placement([0.5, 0.5], 1, [0, 2**31 - 1], integer="int32")


def test_costs():
  np.testing.assert_array_equal(linear_cost(3), [0, 1, 2])
  np.testing.assert_array_equal(quadratic_cost(3, 2.0), [0, 3, 10])
  with pytest.raises(ValueError, match="ratio must be finite"):
    quadratic_cost(3, -1.0)
  for ratio in (1e308, 1e300):
    with pytest.raises(ValueError, match="ratio must keep the cost of 6 depth"):
      quadratic_cost(6, ratio)
  with pytest.raises(ValueError, match="ratio must keep the cost of 3 depths"):
    quadratic_cost(3, 1e38)
  assert quadratic_cost(3, 8e37)[-1] < np.finfo(np.float32).max


def test_a_budget_without_use_is_padded_and_not_solved(monkeypatch):
  solved, solve = [], dynamic_program._solve

  def recorded(*inputs, budget, **options):
    solved.append(budget)
    return solve(*inputs, budget=budget, **options)

  monkeypatch.setattr(dynamic_program, "_solve", recorded)
  expected, placement = (solve_placement([1, 1, 2], b) for b in (2, 100_000))
  assert solved == [2, 2]
  assert placement.positions.shape == (100_000,)
  assert placement.positions.dtype == np.int32
  assert placement.positions[:2].tolist() == expected.positions.tolist()
  assert (np.asarray(placement.positions[2:]) == -1).all()
  assert placement[1:] == expected[1:]
