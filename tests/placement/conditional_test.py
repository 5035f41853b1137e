import copy
import dataclasses
import threading

import chex
import numpy as np
import pytest

from sparse_prefix_jax.placement import (
  CommonPrice,
  Conditional,
  Features,
  PlacementPolicy,
  Planner,
  common_price,
  solve_placement,
  solve_priced,
)
from sparse_prefix_jax.placement.background import _worker
from sparse_prefix_jax.placement.conditional import PricedPlan, steps_of
from sparse_prefix_jax.placement.mixture import Mixture
from sparse_prefix_jax.placement.priced import solve_steps
from tests.placement import reference
from tests.placement.streams import random_rows

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")


def taught(rows, budget=1, decay=1.0, depths=64, cost=None):
  """A planner that has seen these (entry, matched, overlap)."""
  planner = Conditional(
    budget=budget, chunk=64, depths=depths, decay=decay, cost=cost
  )
  for entry, matched, overlap in rows:
    planner.observe(overlap, entry=entry, matched=matched)
  return planner


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
  planner.adopt(planner.planning()())
  assert planner.depths(Features(3000, 1280, age=2))[0] == 20
  assert planner.depths(Features(3000, 330, age=2))[0] == 5


def test_entries_that_nobody_needs_again_get_nothing():
  """Whoever follows an old entry is matched, whoever follows a young is not."""
  old, young = Features(1280, 640, age=40), Features(1280, 640, age=1)
  rows = [(old, None, 0), (young, None, 0), (young, old, 640)] * 30
  planner = taught(rows, budget=0.5)
  planner.adopt(planner.planning()())
  assert 10 in planner.depths(old)
  assert planner.depths(young) == []


@pytest.mark.parametrize("budget", [0.25, 1, 3])
def test_the_budget_holds_on_average(budget):
  planner = Conditional(budget=budget, chunk=64, depths=64)
  kept = []
  for entry, matched, overlap in random_rows(3, count=300):
    planner.observe(overlap, entry=entry, matched=matched)
    if planner.observations % 10 == 0:
      planner.adopt(planner.planning()())
    kept.append(len(planner.depths(entry)))
  assert np.mean(kept[100:]) == pytest.approx(budget, rel=0.25)


def test_a_budget_of_nothing_keeps_nothing():
  planner = taught(random_rows(0), budget=0)
  assert planner.depths(Features(3000)) == []


def test_the_same_features_get_the_same_places():
  planner = taught(random_rows(4), budget=2)
  entry = Features(2000, 640, 3, 7)
  assert planner.depths(entry) == planner.depths(entry)


def test_what_lies_deeper_than_the_bins_counts_in_the_last():
  planner = Conditional(budget=1, chunk=64, depths=8)
  deep = Features(10**6, 10**6 - 64, age=1)
  for _ in range(20):
    planner.observe(10**6 - 64, entry=deep, matched=deep)
  assert planner.depths(deep)[-1] == 7


def dense(planner, features):
  """The steps of an entry as a survival function over all its depths."""
  steps = steps_of(planner.learned().mixture(), features)
  survival = np.zeros(features.length // 64 + 1)
  for depth, mass in zip(steps.depths[::-1], steps.survival[::-1]):
    survival[: depth + 1] = mass
  return survival


@pytest.mark.parametrize("chunks", [1, 7, 60, 500, 2048])
@pytest.mark.parametrize("price", [0.0, 0.01, 0.3, 3.0])
def test_few_places_are_solved_like_all_depths(chunks, price):
  """A state is of use only where the survival function falls."""
  planner = taught(random_rows(1, longest=64 * chunks + 1), depths=2049)
  for overlap in (0, 32 * chunks):
    features = Features(64 * chunks, overlap)
    steps = steps_of(planner.learned().mixture(), features)
    found = solve_priced(dense(planner, features), price)
    assert solve_steps(steps, price) == found


@pytest.mark.parametrize("count", [5, 60, 400])
@pytest.mark.parametrize("states", [1, 2, 8])
def test_few_places_save_nearly_as_much_as_all_depths(count, states):
  """Overlaps anywhere, without a structure that places could hit upon."""
  rows = random_rows(2, count=count, longest=131_072)
  mixture = taught(rows, depths=2049, decay=0.99).learned().mixture()
  features, every = Features(131_072, 65_536, 1), np.arange(1, 2049)
  steps = steps_of(mixture, features)
  survival = mixture.survival_at(every, features)
  weights = survival - np.append(survival[1:], 0.0)
  weights = np.append(0.0, weights)
  found = solve_steps(steps, price_for(steps, states))
  best = solve_placement(weights, len(found)).expected_recompute
  edges = np.array([0, *found])
  saved = np.sum(np.diff(edges) * survival[edges[1:] - 1])
  full = weights @ np.arange(2049) - float(best) * weights.sum()
  assert saved > 0.99 * full


def price_for(steps, states):
  return common_price([steps], states).high


@pytest.mark.parametrize("seed", range(4))
def test_the_true_cost_is_spared(seed):
  """Against every set of positions of an entry of eight chunks."""
  rng = np.random.default_rng(seed)
  cost = np.cumsum(np.append(0, rng.integers(0, 30, 8)))
  rows = random_rows(seed, longest=576)
  planner = taught(rows, budget=2, depths=9, cost=cost)
  planner.adopt(PricedPlan(CommonPrice(0.7, 0.7, 0.0), planner.learned()))
  for entry in (Features(512, 128, 3), Features(512), Features(200, 64, 1)):
    every = np.arange(1, entry.length // 64 + 1)
    survival = planner.learned().mixture().survival_at(every, entry)
    weights = np.append(0.0, survival - np.append(survival[1:], 0.0))
    weighed = {
      m: reference.exhaustive(weights, cost, m) + 0.7 * m
      for m in range(every.size + 1)
    }
    found = planner.depths(entry)
    ours = reference.objective(weights, cost, found) + 0.7 * len(found)
    assert ours == pytest.approx(min(weighed.values()))


KINDS = {
  "a system prompt": lambda length, overlap: 1600,
  "one document": lambda length, overlap: overlap,
  "the end": lambda length, overlap: length - 64,
}


def follow(planner, kind, requests, every=10):
  """Entries of many lengths and overlaps, all left in the same way.

  Returns:
    For each whether the depth was kept at which it was left.
  """
  rng, hits = np.random.default_rng(0), []
  for _ in range(requests):
    length = 64 * int(rng.integers(30, 60))
    overlap = 64 * int(rng.integers(8, 25))
    entry = Features(length, overlap, 2, planner.observations)
    left = KINDS[kind](length, overlap)
    if every:
      hits.append(left // 64 in (planner.depths(entry) or []))
    planner.observe(left, entry=entry, matched=entry)
    if every and planner.observations % every == 0:
      planner.adopt(planner.planning()())
  return hits


@pytest.mark.parametrize(
  "before, requests",
  [("the end", 20_000), ("one document", 5_000), ("a system prompt", 5_000)],
)
def test_after_a_long_time_of_one_kind_another_is_found(before, requests):
  """Within 200 requests, although the first weighed everything."""
  experienced = taught([], decay=0.99)
  follow(experienced, before, requests, every=0)
  for after in set(KINDS) - {before}:
    planner = copy.copy(experienced)  # What it refers to is never changed.
    planner.adopt(planner.planning()())
    assert np.mean(follow(planner, after, 200)[-20:]) >= 0.8, after


def test_two_equal_tenants_in_turn_get_the_same():
  planner = taught([], budget=0.5, decay=0.99)
  kept = [0, 0]
  for born in range(8_000):
    entry = Features(1280, 640, 2, born)
    planner.observe(640, entry=entry, matched=entry)
    if born % 200 == 9:
      planner.adopt(planner.planning()())
    kept[born % 2] += len(planner.depths(entry))
  assert abs(kept[0] - kept[1]) < 0.05 * max(kept)
  assert sum(kept) == pytest.approx(0.5 * 8_000, rel=0.05)


def test_beside_requests_the_next_plan_learns():
  """Placed as at once by what the plan knew, whatever was seen since."""
  at_once = taught([], decay=0.99)
  beside = Conditional(budget=1, chunk=64, depths=64, decay=0.99, beside=True)
  for planner in (at_once, beside):
    follow(planner, "the end", 40)
  entry = Features(64 * 40, 64 * 10, 2, 40)
  before = at_once.depths(entry)
  assert beside.depths(entry) == before
  for planner in (at_once, beside):
    follow(planner, "a system prompt", 39, every=0)
  assert beside.depths(entry) == before
  at_once.adopt(at_once.planning()())
  work = beside.planning()
  after = at_once.depths(entry)
  assert after != before
  follow(beside, "one document", 30, every=0)  # Begun before: not of this plan.
  beside.adopt(work())
  assert beside.depths(entry) == after


def test_statistics_are_learned_once():
  """However many threads and plans ask."""
  planner = Conditional(budget=1, chunk=64, depths=64, beside=True)
  follow(planner, "the end", 25, every=0)
  first = planner.planning()
  follow(planner, "the end", 25, every=0)
  second = planner.planning()
  later, earlier = second().learned.mixture(), first().learned.mixture()
  assert planner.learned().mixture() is later
  assert first().learned.mixture() is earlier
  expected = taught([], decay=0.99)
  follow(expected, "the end", 25, every=0)
  follow(expected, "the end", 25, every=0)
  chex.assert_trees_all_equal(
    dataclasses.asdict(later), dataclasses.asdict(expected.learned().mixture())
  )


def test_no_request_but_the_first_waits_until_statistics_are_learned(
  monkeypatch,
):
  """Nor for a plan: its thread has whole requests for it."""
  learning = []
  observe = Mixture.observe

  def noted(mixture, *args, **kwargs):
    learning.append(threading.current_thread())
    return observe(mixture, *args, **kwargs)

  monkeypatch.setattr(Mixture, "observe", noted)
  policy = PlacementPolicy("conditional", 1)
  planner = Planner(policy, depths=64, serving=True)
  matched = None
  for number in range(60):
    matched = planner.describe(1280 + 64 * number, 1216, matched)
    planner.observe(1216, entry=matched, matched=matched)
    planner.positions(1280, matched)
    _worker().submit(int).result()  # as a prefill would take that long
  here = threading.current_thread()
  assert [thread for thread in learning if thread is here] == [here]
  assert len(learning) > 50


@pytest.mark.parametrize(
  "wrong, sentence",
  [
    ({"budget": -1}, "budget of conditional .* must be at least 0, got -1"),
    ({"budget": "1"}, "budget must be a finite number, got '1'"),
    ({"chunk": 0}, "chunk and every must be at least 1"),
    ({"depths": None}, "depths must be an integer, got None"),
    ({"decay": 2.0}, "decay must be in"),
    ({"cost": [0, 1]}, "cost must have one value per depth"),
  ],
)
def test_statistics_that_cannot_be_are_refused(wrong, sentence):
  with pytest.raises(ValueError, match=sentence):
    Conditional(**({"budget": 1, "chunk": 64, "depths": 8} | wrong))


@pytest.mark.parametrize("wrong", [None, "64", 1.5, [64]])
def test_a_planner_takes_whole_numbers_alone(wrong):
  planner = Planner(PlacementPolicy("last"), depths=8)
  for call in (
    planner.observe,
    planner.positions,
    lambda depths: Planner(PlacementPolicy("last"), depths=depths),
  ):
    with pytest.raises(ValueError, match="must be an integer, got"):
      call(wrong)
  with pytest.raises(ValueError, match="it must be a PlacementPolicy"):
    Planner(wrong, depths=8)
  with pytest.raises(ValueError, match="features is 5; it must be a Features"):
    planner.positions(640, 5)
  assert planner.observations == 0


@pytest.mark.parametrize(
  "wrong, sentence",
  [
    (5, "is 5; it must be a Features, of `Planner.describe`"),
    ((640, 0), "it must be a Features"),
    (Features("x"), ".length must be an integer, got 'x'"),
    (Features(640, -1), ".overlap is -1; it must be at least 0"),
    (Features(640, cue=0.5), ".cue must be an integer, got 0.5"),
  ],
)
def test_what_says_nothing_of_an_entry_is_refused(wrong, sentence):
  """It was noted, and learning failed at each request that followed."""
  planner = Planner(PlacementPolicy("conditional", 1), depths=16)
  entry = Features(640)
  planner.observe(64, entry=entry)
  learner = Conditional(budget=1, chunk=64, depths=16)
  for call in (
    lambda: planner.observe(64, entry=wrong),
    lambda: planner.observe(64, entry=entry, matched=wrong),
    lambda: planner.describe(640, 64, wrong),
    lambda: planner.expected_lost([64], wrong),
    lambda: learner.observe(64, entry=wrong),
    lambda: learner.depths(wrong),
    lambda: learner.survival(wrong),
  ):
    with pytest.raises(ValueError, match=sentence):
      call()
  with pytest.raises(ValueError, match="prompt is 5; it must be a Prompt"):
    planner.describe(640, 64, prompt=5)
  assert planner.observations == 1


@pytest.mark.parametrize("wrong", [None, 5, ["a"], [64, None], [-64], [64.0]])
def test_positions_of_states_are_whole_numbers(wrong):
  planner = Planner(PlacementPolicy("optimal", 1), depths=16)
  planner.observe(64)
  with pytest.raises(ValueError, match=r"^positions"):
    planner.expected_lost(wrong, Features(640))
  assert planner.expected_lost((128, 64), Features(640)) == 0
