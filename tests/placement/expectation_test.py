import numpy as np
import pytest

from sparse_prefix_jax.placement import Features, PlacementPolicy, Planner
from sparse_prefix_jax.placement.expectation import expected_lost


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_mean_over_all_overlaps(seed):
  """Every depth, times how often, less the deepest state not below it."""
  rng = np.random.default_rng(seed)
  end = int(rng.integers(1, 30))
  counts = rng.integers(0, 9, end).astype(np.float64)
  counts[0] += 1
  depths = sorted({*rng.integers(1, end + 1, 4).tolist()})
  lost = [
    depth - max([d for d in depths if d <= depth], default=0)
    for depth in range(1, end + 1)
  ]
  mean = float(counts @ np.array(lost) / counts.sum())
  survival = counts[::-1].cumsum()[::-1]
  assert expected_lost(survival, depths) == pytest.approx(mean, abs=1e-12)
  assert expected_lost(3 * survival, depths) == pytest.approx(mean, abs=1e-12)


def test_nothing_is_lost_of_nothing():
  assert expected_lost(np.zeros(0), []) == 0
  assert expected_lost(np.zeros(3), [2]) == 0


def test_placements_that_learn_expect_and_others_do_not():
  entry = Features(640)
  for name, budget in (("optimal", 1), ("dp", 1), ("conditional", 1)):
    planner = Planner(PlacementPolicy(name, budget), depths=16)
    assert planner.expected_lost([128], entry) is None
    planner.observe(200, entry=entry, matched=entry)
    everywhere = range(64, 641, 64)
    assert planner.expected_lost(everywhere, entry) == pytest.approx(0)
    nowhere = planner.expected_lost([], entry)
    assert nowhere is not None and nowhere > 0
    deep = planner.expected_lost([192], Features(128))
    assert deep is not None and 0 <= deep < 128
  planner = Planner(PlacementPolicy("last"), depths=16)
  planner.observe(200)
  assert planner.expected_lost([128], entry) is None
