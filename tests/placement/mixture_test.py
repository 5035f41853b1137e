import dataclasses

import numpy as np
import pytest

from sparse_prefix_jax.placement import Features, Mixture
from tests.placement.streams import random_rows


def naive_survival(mixture, features):
  """The mixture of the module docstring, depth by depth, from its counts."""
  chunk = mixture.chunk
  end = min(features.length // chunk, mixture.last)
  own = min(features.overlap // chunk, end)
  cue = min(features.cue // chunk, end)
  kind = int(features.overlap >= chunk) + 2 * int(features.cue >= chunk)
  shares = mixture.shares[kind]
  if kind > 1:
    shares = shares + mixture.shares[kind - 2] / mixture.shares[kind - 2].sum()
  densities = np.zeros((4, end + 1))
  for k, origin in enumerate((0, own, end, cue)):
    counts = [mixture.offsets[k].count(t - origin) for t in range(end + 1)]
    counts[cue] += k == 3
    rest = mixture.offsets[k].others + 0.5
    total = sum(counts[1:]) + rest
    for t in range(1, end + 1):
      densities[k, t] = (counts[t] + rest / end) / total
  weights = mixture.rate(features) * (shares / shares.sum()) @ densities
  return np.array([weights[s:].sum() for s in range(end + 1)])


def taught(rows, decay=1.0, depths=64):
  """Statistics of these (entry, matched, overlap)."""
  mixture = Mixture.create(chunk=64, depths=depths, decay=decay)
  for entry, matched, overlap in rows:
    mixture = mixture.observe(overlap, entry=entry, matched=matched)
  return mixture


def all_depths(mixture, features):
  return np.arange(1, min(features.length // 64, mixture.last) + 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("longest, depths", [(3000, 64), (20_000, 200)])
def test_the_survival_is_the_mixture(seed, longest, depths):
  rows = random_rows(seed, longest=longest, cues=bool(seed % 2))
  mixture = taught(rows, decay=0.9, depths=depths)
  for entry, _, _ in rows[:20]:
    where = all_depths(mixture, entry)
    np.testing.assert_allclose(
      mixture.survival_at(where, entry),
      naive_survival(mixture, entry)[1:],
      rtol=1e-12,
    )


def test_what_is_no_longer_kept_is_spread_evenly():
  mixture = taught(random_rows(0))
  fewer = tuple(
    counts._replace(others=2.0 + k) for k, counts in enumerate(mixture.offsets)
  )
  mixture = dataclasses.replace(mixture, offsets=fewer)
  features = Features(2000, 640)
  np.testing.assert_allclose(
    mixture.survival_at(all_depths(mixture, features), features),
    naive_survival(mixture, features)[1:],
    rtol=1e-12,
  )


def test_the_rate_times_one_is_at_the_first_depth():
  """A survival begins with the expected number of matches."""
  mixture = taught(random_rows(1))
  for features in (Features(64), Features(640, 128, 3, 9)):
    survival = mixture.survival_at(all_depths(mixture, features), features)
    assert survival[0] == pytest.approx(mixture.rate(features))
    assert np.all(np.diff(survival) < 0)


def test_a_short_entry_may_keep_a_state_anywhere():
  mixture = taught(random_rows(2))
  assert mixture.places(Features(63)).tolist() == []
  for chunks in (1, 2, 40, 63):
    expected = list(range(1, chunks + 1))
    assert mixture.places(Features(64 * chunks)).tolist() == expected


def test_a_long_entry_may_keep_a_state_where_entries_were_left():
  """The number of places grows with the offsets seen, not with the depth."""
  deep = Features(64 * 10_000, 64 * 5_000, age=1)
  mixture = taught([(deep, deep, 64 * 4_321)] * 20, depths=20_000)
  places = mixture.places(deep)
  assert 4_321 in places and places[0] == 1 and places[-1] < 10_000
  assert places.size <= 65
  assert 9_321 in mixture.places(deep._replace(overlap=64 * 10_000))
  assert 4_321 in mixture.places(deep._replace(length=64 * 12_000))


def test_who_follows_an_old_entry_is_matched():
  old, young = Features(1280, 640, age=40), Features(1280, 640, age=1)
  mixture = taught([(old, None, 0), (young, None, 0), (young, old, 640)] * 30)
  assert mixture.rate(old) > 4 * mixture.rate(young)


def test_overlaps_within_a_chunk_are_no_matches():
  entry = Features(640)
  mixture = taught([(entry, entry, 63)] * 20)
  assert mixture.rate(entry) < 0.05
  assert all(counts.where.size == 0 for counts in mixture.offsets)


def test_no_share_of_an_origin_vanishes():
  """An entry without a match has no overlap to count from."""
  rng, rows = np.random.default_rng(0), []
  for _ in range(3_000):
    alone = Features(64 * int(rng.integers(5, 60)))
    rows.append((alone, alone, alone.length - 64))
  mixture = taught(rows, decay=0.99)
  shares = mixture.shares / mixture.shares.sum(axis=1, keepdims=True)
  assert shares[0, 0] == pytest.approx(1e-3, rel=0.01)
  assert shares[0, 1] == 0.0
  assert mixture.offsets[1].where.size == 0


def test_observing_changes_nothing_that_others_hold():
  rows = random_rows(3)
  before = taught(rows[:30], decay=0.9)
  again = taught(rows[:30], decay=0.9)
  for entry, matched, overlap in rows[30:]:
    before.observe(overlap, entry=entry, matched=matched)
  for name in ("shares", "left", "entries"):
    np.testing.assert_array_equal(
      getattr(before, name), getattr(again, name), strict=True
    )
  for ours, theirs in zip(before.offsets, again.offsets):
    np.testing.assert_array_equal(ours.where, theirs.where)
    np.testing.assert_array_equal(ours.counts, theirs.counts)


def test_a_cue_explains_where_entries_are_left():
  """At no other offset than its own: lengths and overlaps say nothing."""
  rng, rows = np.random.default_rng(0), []
  for _ in range(60):
    chunks = int(rng.integers(20, 60))
    left = 64 * int(rng.integers(2, chunks - 2))
    entry = Features(64 * chunks, cue=left + 5)
    rows.append((entry, entry, left + 5))
  mixture = taught(rows)
  survival = mixture.survival_at(
    np.array([30, 31]), Features(64 * 50, cue=64 * 30)
  )
  assert survival[1] < 0.1 * survival[0]
  alone = Features(64 * 50)  # Without a cue nothing was learned.
  assert mixture.survival_at(np.array([31]), alone) > survival[1]
