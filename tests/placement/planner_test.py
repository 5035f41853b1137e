import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_prefix_jax.placement import Features, PlacementPolicy, Planner
from sparse_prefix_jax.placement.planner import POLICIES

BUDGETS = {
  "block": 200,
  "balanced": 3,
  "dyadic": 100,
  "dp": 2,
  "optimal": 2,
  "conditional": 1.5,
}


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
  st.sampled_from(sorted(POLICIES)),
  st.integers(1, 5000),
  st.lists(st.integers(0, 3000), max_size=3),
)
def test_positions_lie_on_the_lattice_within_the_entry(name, length, overlaps):
  policy = PlacementPolicy(name, BUDGETS.get(name), chunk=32)
  planner = Planner(policy, depths=64)
  for overlap in overlaps:
    planner.observe(overlap)
  positions = planner.positions(length)
  assert all(p % 32 == 0 and 0 < p <= length for p in positions)
  assert list(positions) == sorted(set(positions))
  assert [p for p in planner.marks(length) if p] == list(positions)


def test_each_heuristic_in_tokens():
  def positions(name, budget=None):
    return Planner(PlacementPolicy(name, budget), depths=8).positions(1000)

  assert positions("no_cache") == ()
  assert positions("last") == (960,)
  assert positions("block", 400) == (384, 768)
  assert positions("balanced", 2) == (320, 640)
  assert positions("sqrt")[:2] == (64, 128)
  assert positions("dyadic", 200) == (256, 512)


def test_zero_is_counted_only_as_a_mark():
  planner = Planner(PlacementPolicy("balanced", 40), depths=8)
  assert planner.marks(1000)[0] == 0
  assert planner.positions(1000)[0] == 64


@pytest.mark.parametrize("name", ["dp", "optimal"])
def test_learned_policies_fall_back_to_balanced(name):
  planner = Planner(PlacementPolicy(name, 2), depths=32)
  balanced = Planner(PlacementPolicy("balanced", 2), depths=32)
  assert planner.positions(1000) == balanced.positions(1000)
  planner.observe(700)
  assert 640 in planner.positions(1000)
  assert 640 not in planner.positions(639)


@pytest.mark.parametrize("name", ["dp", "optimal"])
def test_more_states_than_depths_are_not_planned(name):
  planner = Planner(PlacementPolicy(name, 10**20), depths=4)
  for overlap in (64, 192, 64):
    planner.observe(overlap)
  assert {64, 192} <= set(planner.positions(1000)) <= {64, 128, 192}


def test_true_is_one_state():
  planner = Planner(PlacementPolicy("dp", True), depths=4)
  planner.observe(128)
  assert planner.positions(1000) == (128,)


def replay(policy, overlaps, warming_up=0):
  """Positions after each overlap."""
  planner = Planner(policy, depths=32, warming_up=warming_up > 0)
  placed = []
  for index, overlap in enumerate(overlaps):
    if warming_up and index == warming_up:
      planner.end_warmup()
    planner.observe(overlap)
    placed.append(planner.positions(2000))
  return placed


@pytest.mark.parametrize("name", ["dp", "optimal"])
def test_when_each_mode_plans_again(name):
  policy = PlacementPolicy(name, 1, every=4, decay=0.5)
  # Traffic moves from depth 320 to 640 after four observations.
  overlaps = [320] * 4 + [640] * 8
  frozen = replay(dataclasses.replace(policy, replan="frozen"), overlaps)
  assert frozen[:3] == [(960,)] * 3 and frozen[3:] == [(320,)] * 9
  periodic = replay(dataclasses.replace(policy, replan="periodic"), overlaps)
  assert periodic[:11] == [(320,)] * 11 and periodic[11] == (640,)
  decaying = replay(policy, overlaps)
  assert decaying[:7] == [(320,)] * 7 and decaying[7:] == [(640,)] * 5


def test_warm_up_ends_with_a_plan():
  placed = replay(PlacementPolicy("dp", 1, every=100), [320] * 8, 5)
  assert placed == [(960,)] * 5 + [(320,)] * 3


def test_overlaps_deeper_than_the_bins_count_in_the_last():
  planner = Planner(PlacementPolicy("last"), depths=4)
  planner.observe(10**6)
  np.testing.assert_array_equal(planner.counts, [0, 0, 0, 1])


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    ({"name": "lru"}, "placement must be one of no_cache, last, block,"),
    ({"name": "block"}, "placement block needs a budget: tokens between"),
    ({"name": "last", "budget": 3}, "placement last takes no budget, got 3"),
    ({"name": "block", "budget": 0}, "must be at least 1, got 0"),
    ({"name": "dp", "budget": -1}, "must be at least 0, got -1"),
    ({"name": "sqrt", "chunk": 0}, "chunk and every must be at least 1"),
    ({"name": "sqrt", "decay": 0.0}, "decay must be in"),
    ({"name": "sqrt", "replan": "never"}, "replan must be one of frozen,"),
  ],
)
def test_bad_policies_are_refused(arguments, sentence):
  with pytest.raises(ValueError, match=sentence):
    PlacementPolicy(**arguments)


@pytest.mark.parametrize(
  "field, value",
  [("budget", 2.5), ("budget", "3"), ("chunk", 1.5), ("every", 2.0)],
)
def test_numbers_that_are_no_integers_are_refused(field, value):
  """The type check of the tests would refuse them in the constructor."""
  policy = PlacementPolicy("dp", 2)
  object.__setattr__(policy, field, value)
  with pytest.raises(ValueError, match=f"{field} must be an integer, got "):
    policy.__post_init__()


def test_conditional_asks_for_a_finite_number():
  assert PlacementPolicy("conditional", 0.5).budget == 0.5
  for budget in (float("nan"), float("inf")):
    with pytest.raises(ValueError, match="budget must be a finite number, got"):
      PlacementPolicy("conditional", budget)
  with pytest.raises(ValueError, match=r"must be at least 0, got -0\.5"):
    PlacementPolicy("conditional", -0.5)
  with pytest.raises(ValueError, match=r"budget must be an integer, got 0\.5"):
    PlacementPolicy("optimal", 0.5)


def test_a_description_counts_age_in_observations():
  planner = Planner(PlacementPolicy("conditional", 1), depths=32)
  first = planner.describe(640, 0)
  assert first == Features(640, overlap=0, age=0, born=0)
  planner.observe(0, entry=first)
  planner.observe(0)
  second = planner.describe(700, 640, first)
  assert second == Features(700, overlap=640, age=2, born=2)


def converse(planner, requests, tail):
  """Entries of many lengths, each left `tail` tokens before its end."""
  rng = np.random.default_rng(0)
  for _ in range(requests):
    entry = planner.describe(64 * int(rng.integers(8, 30)), 0)
    planner.observe(entry.length - tail, entry=entry, matched=entry)


def test_conditional_when_it_plans():
  """Until anything is known like balanced; while it warms up from statistics,
  which frozen plans keep from the end of the warm-up on."""
  policy = PlacementPolicy("conditional", 1, every=5)
  planner = Planner(policy, depths=32, warming_up=True)
  balanced = Planner(PlacementPolicy("balanced", 1), depths=32)
  assert planner.positions(1280) == balanced.positions(1280)
  converse(planner, 30, tail=64)
  assert planner.positions(1280)[-1] == 1280 - 64
  frozen = Planner(
    dataclasses.replace(policy, replan="frozen"), depths=32, warming_up=True
  )
  for each in (planner, frozen):
    converse(each, 30, tail=64)
    each.end_warmup()
    converse(each, 200, tail=320)
  assert planner.positions(1280)[-1] == 1280 - 320
  assert frozen.positions(1280)[-1] == 1280 - 64


def test_bad_observations_change_nothing():
  planner = Planner(PlacementPolicy("last"), depths=4)
  with pytest.raises(ValueError, match="overlap_tokens must not be negative"):
    planner.observe(-1)
  assert planner.observations == 0 and not planner.counts.any()
  with pytest.raises(ValueError, match="depths must be at least 2, got 1"):
    Planner(PlacementPolicy("last"), depths=1)


def test_budgets_of_conditional_are_real_numbers():
  for budget in (2, 0.5, 10**400):
    assert PlacementPolicy("conditional", budget).budget == budget
  for budget in (True, float("nan"), float("inf")):
    with pytest.raises(ValueError, match="budget must be a finite number"):
      PlacementPolicy("conditional", budget)
