import numpy as np
import pytest

from sparse_prefix_jax.placement import Features
from sparse_prefix_jax.placement.pooled import Pooled
from tests.placement import reference


def taught(overlaps, name="optimal", budget=2, depths=8, **options):
  pooled = Pooled(name, budget=budget, chunk=64, depths=depths, **options)
  for overlap in overlaps:
    pooled.observe(overlap)
  return pooled


def test_overlaps_deeper_than_the_bins_count_in_the_last():
  pooled = taught([10**6], depths=4)
  np.testing.assert_array_equal(pooled.histogram.counts, [0, 0, 0, 1])
  assert pooled.observations == 1


def test_counts_are_the_papers_to_the_bit():
  """Counts in float64, decayed first: rounding decides ties of its rule."""
  overlaps = np.random.default_rng(0).integers(0, 800, 500).tolist()
  expected = np.zeros(8)
  for overlap in overlaps:
    expected *= 0.99
    expected[min(overlap // 64, 7)] += 1.0
  counts = taught(overlaps, decay=0.99).histogram.counts
  np.testing.assert_array_equal(counts, expected, strict=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_the_true_cost_is_spared(seed, kind):
  rng = np.random.default_rng(seed)
  steps = rng.integers(0, 9, 7) if kind == "integers" else rng.random(7)
  cost = np.append(0, np.cumsum(steps))
  overlaps = (64 * rng.integers(0, 8, 40)).tolist()
  pooled = taught(overlaps, cost=cost, decay=1.0)
  pooled.adopt(pooled.planning()())
  found = pooled.depths(Features(64 * 8))
  counts = np.bincount(np.array(overlaps) // 64, minlength=8)
  assert reference.objective(counts, cost, found) == pytest.approx(
    reference.exhaustive(counts, cost, 2), rel=1e-9
  )


def test_the_papers_rule_knows_no_cost():
  cost = np.append(0, np.cumsum([1, 1, 1, 1, 1, 1, 100]))
  plans = [
    taught([64, 64, 192, 448], name="dp", budget=1, cost=c).planning()()
    for c in (None, cost)
  ]
  assert plans[0] == plans[1]


def test_a_plan_holds_what_it_was_begun_with():
  pooled = taught([128] * 3)
  planning = pooled.planning()
  for overlap in [320] * 50:
    pooled.observe(overlap)
  assert planning() == [2]
  pooled.adopt(planning())
  assert pooled.depths(Features(640)) == [2]
  assert pooled.depths(Features(127)) == []


def test_no_plan_before_the_first():
  assert taught([128]).depths(Features(640)) is None
