import numpy as np
import pytest

from sparse_prefix_jax.placement.worth.ages import BINS
from sparse_prefix_jax.placement.worth.cells import CELLS
from sparse_prefix_jax.placement.worth.fading_counts import FadingCounts
from sparse_prefix_jax.placement.worth.hazards import Hazards
from sparse_prefix_jax.placement.worth.regime import News, Regime

NOBODY = np.zeros(0, np.int64)


def lived(hazards, random, *, asked, refits, count=200):
  """Candidates of all cells, asked again once in so many requests."""
  heard = []
  for _ in range(refits):
    cells = random.integers(0, CELLS, count)
    ages = random.geometric(1 / asked, count)
    hazards.expose(cells, ages)
    hazards.happen(cells, ages)
    heard.append(hazards.refit(NOBODY, NOBODY))
  return heard


def never_asked(hazards, random, *, refits):
  """Candidates that nobody asks for again."""
  heard = []
  for _ in range(refits):
    cells = random.integers(0, CELLS, 200)
    hazards.expose(cells, np.full(200, 1000))
    heard.append(hazards.refit(NOBODY, NOBODY))
  return heard


def until(news, hazards, random, *, asked, count=25):
  """How many refits it takes, with so few candidates, until that is heard."""
  for refits in range(1, 40):
    if lived(hazards, random, asked=asked, refits=1, count=count)[0] is news:
      return refits
  return 40


def test_while_requests_are_alike_nothing_is_forgotten():
  hazards, random = Hazards(), np.random.default_rng(0)
  heard = lived(hazards, random, asked=20, refits=60)
  assert {*heard} <= {News.NONE, News.SUSPECTED}
  assert hazards.events.sum() == 60 * 200


def test_what_was_before_a_change_counts_a_twentieth():
  """The rest is what whoever came later has seen, from the mark on."""
  hazards, random = Hazards(), np.random.default_rng(1)
  lived(hazards, random, asked=20, refits=40)
  events, exposure = hazards.events.copy(), hazards.exposure.copy()
  later, heard = np.random.default_rng(2), []
  while News.CHANGED not in heard:
    assert len(heard) < 4
    heard += lived(hazards, later, asked=300, refits=1)
  fresh, again = Hazards(), np.random.default_rng(2)
  lived(fresh, again, asked=300, refits=len(heard))
  assert np.allclose(hazards.events, fresh.events + 0.05 * events)
  assert np.allclose(hazards.exposure, fresh.exposure + 0.05 * exposure)


def test_who_waited_before_a_change_is_counted_from_the_mark_on():
  """What a candidate had waited before says nothing of the new requests."""
  hazards, random = Hazards(), np.random.default_rng(3)
  cells, age, heard = random.integers(0, CELLS, 100), 0, News.NONE
  waited = []
  while heard is not News.CHANGED:
    asked = random.integers(0, CELLS, 200)
    ages = random.geometric(1 / (20 if age < 2000 else 300), 200)
    hazards.expose(asked, ages)
    hazards.happen(asked, ages)
    waited.append(ages.sum())
    age += 50
    heard = hazards.refit(cells, np.full(100, age))
  before, since = sum(waited[:40]), sum(waited[40:])
  assert age < 2200
  exposure = hazards.exposure.sum() + 100 * age
  before, since = before + 100 * 2000, since + 100 * (age - 2000)
  assert exposure == pytest.approx(0.05 * before + since)


def test_what_comes_back_is_known_beside_what_came_between():
  hazards, random = Hazards(), np.random.default_rng(4)
  heard = lived(hazards, random, asked=20, refits=40)
  events = hazards.events.sum()
  for asked, news in ((300, News.CHANGED), (20, News.RETURNED)):
    while heard[-1] is not news:
      heard += lived(hazards, random, asked=asked, refits=1)
  events += 200 * (len(heard) - 40)
  assert hazards.events.sum() == pytest.approx(events)


def test_what_was_put_aside_twice_comes_back_whole():
  """Three kinds of requests take turns: the first is not lost to the third."""
  hazards, random = Hazards(), np.random.default_rng(6)
  lived(hazards, random, asked=20, refits=40)
  assert News.CHANGED in lived(hazards, random, asked=300, refits=4)
  assert News.CHANGED in never_asked(hazards, random, refits=4)
  assert News.RETURNED in lived(hazards, random, asked=20, refits=4)
  assert hazards.events.sum() == pytest.approx(48 * 200)


def test_to_come_back_again_takes_no_more_than_the_first_time():
  """Only to be parted does: what comes back may be known at once."""
  hazards, random = Hazards(), np.random.default_rng(7)
  lived(hazards, random, asked=20, refits=40)
  found = []
  for _ in range(2):
    assert News.CHANGED in never_asked(hazards, random, refits=20)
    found.append(until(News.RETURNED, hazards, random, asked=20, count=1))
    lived(hazards, random, asked=20, refits=20)
  assert 1 < found[0] < 8
  assert found[1] <= found[0] + 1


def test_what_has_come_back_is_not_parted_as_soon_again():
  hazards, random = Hazards(), np.random.default_rng(5)
  lived(hazards, random, asked=20, refits=40)
  first = until(News.CHANGED, hazards, random, asked=300)
  lived(hazards, random, asked=300, refits=40)
  assert until(News.RETURNED, hazards, random, asked=20) < 40
  lived(hazards, random, asked=20, refits=40)
  assert first < until(News.CHANGED, hazards, random, asked=300)


def test_a_mark_that_proves_nothing_moves():
  """Who was asked for at every age is so no more, but nobody waits for long."""
  regime = Regime()
  events, exposure = np.zeros((2, CELLS, BINS))
  events[0], exposure[0] = 1000, 1000
  regime.observe(events, exposure)
  heard = []
  for _ in range(16):
    exposure[0, 0] += 1
    heard.append(regime.observe(events, exposure))
  assert heard == 2 * [*7 * [News.SUSPECTED], News.NONE]


def test_places_before_a_mark_count_a_twentieth():
  counts, before, since = FadingCounts(), FadingCounts(), FadingCounts()
  for place in (3, 3, 7):
    counts.observe(place)
    before.observe(place)
  counts.hear(News.NONE)
  for place in (5, 600):
    counts.observe(place)
    counts.hear(News.SUSPECTED)
    before.observe(place)
    since.observe(place)
  known = before.counts.copy()
  assert np.array_equal(counts.counts, known)
  counts.hear(News.CHANGED)
  changed = 0.05 * known + 0.95 * since.counts
  assert np.allclose(counts.counts, changed)
  counts.hear(News.RETURNED)
  assert np.allclose(counts.counts, known)


def test_places_put_aside_twice_come_back():
  counts = FadingCounts()
  counts.observe(3)
  known = counts.counts.copy()
  for _ in range(2):
    counts.hear(News.NONE)
    counts.hear(News.CHANGED)
  assert np.allclose(counts.counts, 0.05**2 * known)
  counts.hear(News.RETURNED)
  assert np.allclose(counts.counts, known)
