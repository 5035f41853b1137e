import numpy as np
import pytest

from sparse_prefix_jax.placement import Conditional, Features


def naive_survival(planner, features):
  """The mixture of the module docstring, depth by depth, from its counts."""
  chunk, middle = planner.chunk, planner._counts.shape[1] // 2
  end = min(features.length // chunk, middle - 1)
  own = min(features.overlap // chunk, end)
  shares = planner._shares[int(features.overlap >= chunk)]
  densities = np.zeros((3, end + 1))
  for k, origin in enumerate((0, own, end)):
    counts = [planner._counts[k, t - origin + middle] for t in range(end + 1)]
    total = sum(counts[1:]) + 0.5
    for t in range(1, end + 1):
      densities[k, t] = (counts[t] + 0.5 / end) / total
  weights = planner.rate(features) * (shares / shares.sum()) @ densities
  return np.array([weights[s:].sum() for s in range(end + 1)])


def taught(rows, budget=1, decay=1.0):
  """A planner that has seen these (entry, matched, overlap)."""
  planner = Conditional(budget=budget, chunk=64, depths=64, decay=decay)
  for entry, matched, overlap in rows:
    planner.observe(overlap, entry=entry, matched=matched)
  return planner


def random_rows(seed, count=60):
  rng = np.random.default_rng(seed)
  rows, placed = [], [Features(1000)]
  for born in range(count):
    matched = placed[rng.integers(len(placed))]
    overlap = int(rng.integers(0, matched.length))
    length = int(rng.integers(1, 3000))
    entry = Features(
      length, min(overlap, length), max(1, born - matched.born), born
    )
    rows.append((entry, matched, overlap))
    placed.append(entry)
  return rows


@pytest.mark.parametrize("seed", range(5))
def test_the_survival_is_the_mixture(seed):
  rows = random_rows(seed)
  planner = taught(rows, decay=0.9)
  for entry, _, _ in rows[:20]:
    np.testing.assert_allclose(
      planner.survival(entry), naive_survival(planner, entry), rtol=1e-12
    )


def test_the_rate_times_one_is_at_depth_zero():
  """A survival begins with the expected number of matches."""
  planner = taught(random_rows(1))
  for features in (Features(64), Features(640, 128, 3, 9)):
    survival = planner.survival(features)
    assert survival[0] == pytest.approx(planner.rate(features))
    assert survival.size == features.length // 64 + 1
    assert np.all(np.diff(survival) <= 0)


def test_an_end_that_recurs_is_found_at_other_lengths():
  """Questions of one chunk at the end of documents of any length."""
  rng = np.random.default_rng(0)
  documents = [Features(64 * int(rng.integers(5, 40))) for _ in range(80)]
  planner = taught([(d, d, d.length - 64) for d in documents])
  for chunks in (4, 17, 50):
    assert planner.depths(Features(64 * chunks))[-1] == chunks - 1


def test_an_own_overlap_that_recurs_is_found():
  rng = np.random.default_rng(0)
  rows = []
  for _ in range(80):
    overlap = 64 * int(rng.integers(3, 20))
    entry = Features(overlap + 640, overlap, age=2)
    rows.append((entry, entry, overlap))
  planner = taught(rows)
  assert planner.depths(Features(3000, 1280, age=2))[0] == 20
  assert planner.depths(Features(3000, 330, age=2))[0] == 5


def test_entries_that_nobody_needs_again_get_nothing():
  """Whoever follows an old entry is matched, whoever follows a young is not."""
  old, young = Features(1280, 640, age=40), Features(1280, 640, age=1)
  rows = [(old, None, 0), (young, None, 0), (young, old, 640)] * 30
  planner = taught(rows, budget=0.5)
  assert planner.rate(old) > 4 * planner.rate(young)
  planner.plan()
  assert 10 in planner.depths(old)
  assert planner.depths(young) == []


@pytest.mark.parametrize("budget", [0.25, 1, 3])
def test_the_budget_holds_on_average(budget):
  planner = Conditional(budget=budget, chunk=64, depths=64)
  kept = []
  for entry, matched, overlap in random_rows(3, count=300):
    planner.observe(overlap, entry=entry, matched=matched)
    if planner.observations % 10 == 0:
      planner.plan()
    kept.append(len(planner.depths(entry)))
  assert np.mean(kept[100:]) == pytest.approx(budget, rel=0.25)


def test_a_budget_of_nothing_keeps_nothing():
  planner = taught(random_rows(0), budget=0)
  assert planner.depths(Features(3000)) == []


def test_the_same_features_get_the_same_places():
  planner = taught(random_rows(4), budget=2)
  entry = Features(2000, 640, 3, 7)
  assert planner.depths(entry) == planner.depths(entry)


def test_overlaps_within_a_chunk_are_no_matches():
  entry = Features(640)
  planner = taught([(entry, entry, 63)] * 20)
  assert planner.rate(entry) < 0.05
  assert not planner._counts.any()


def test_what_lies_deeper_than_the_bins_counts_in_the_last():
  planner = Conditional(budget=1, chunk=64, depths=8)
  deep = Features(10**6, 10**6 - 64, age=1)
  for _ in range(20):
    planner.observe(10**6 - 64, entry=deep, matched=deep)
  assert planner.survival(deep).size == 8
  assert planner.depths(deep)[-1] == 7
