import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.placement import HEURISTICS, solve_placement
from sparse_prefix_jax.placement.heuristics import spaced

EXPECTED = {
  # name: (budget, positions for the deepest depth 20)
  "no_cache": (0, []),
  "last": (1, [20]),
  "block": (6, [6, 12, 18]),
  "balanced": (3, [5, 10, 15]),
  "sqrt": (0, [4, 8, 12, 16, 20]),
  "dyadic": (3, [4, 8, 16]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_positions_and_what_they_cost(name):
  budget, positions = EXPECTED[name]
  weights = np.arange(21) % 7
  placement = HEURISTICS[name](weights, budget)
  assert placement.positions.tolist() == positions
  expected = sum(
    int(w) * (t - max((p for p in positions if p <= t), default=0))
    for t, w in enumerate(weights)
  )
  assert int(placement.objective) == expected
  np.testing.assert_allclose(
    float(placement.expected_recompute), expected / weights.sum(), rtol=1e-6
  )


def test_every_heuristic_has_an_expectation():
  assert set(HEURISTICS) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_never_better_than_the_optimum(name):
  weights = np.random.default_rng(1).random(64)
  placement = HEURISTICS[name](weights, EXPECTED[name][0])
  used = placement.positions.shape[0]
  best = solve_placement(weights, used)
  slack = float(best.loss_bound) + 1e-5
  gap = placement.expected_recompute - best.expected_recompute
  assert float(gap) >= -slack


def test_under_jit_and_vmap():
  weights = jnp.asarray(np.arange(1, 31).reshape(2, 15) % 5, jnp.int32)
  balanced = HEURISTICS["balanced"]
  measured = jax.jit(jax.vmap(lambda w: balanced(w, 2, integer="int32")))
  alone = [int(balanced(w, 2).objective) for w in weights]
  assert measured(weights).objective.tolist() == alone


def test_rules_in_tokens():
  assert list(spaced("balanced", 2939, 300))[:2] == [9, 18]
  assert list(spaced("balanced", 3, 9)) == [1, 2, 3]
  assert list(spaced("block", 1024, 512)) == [512, 1024]
  assert spaced("dyadic", 8192, 768) == [1024, 2048, 4096, 8192]
  assert spaced("dyadic", 8192, 1024)[0] == 1024
  assert list(spaced("sqrt", 1, 0)) == [1]
  assert [list(spaced(n, 0, 1)) for n in EXPECTED] == [[]] * 6


@pytest.mark.parametrize("name", ["block", "dyadic"])
def test_distances_begin_at_one(name):
  with pytest.raises(ValueError, match=f"budget of {name} must be at least 1"):
    HEURISTICS[name]([1, 2, 3], 0)


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match="name must be one of no_cache, last"):
    spaced("every", 10, 1)
  with pytest.raises(ValueError, match="weights must not all be zero"):
    HEURISTICS["last"]([0, 0])
  with pytest.raises(ValueError, match="cost must not decrease"):
    HEURISTICS["block"]([1, 1, 1], 1, [0, 2, 1])
