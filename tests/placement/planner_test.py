import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_prefix_jax.placement import (
  PLACEMENTS,
  SHARED,
  Features,
  PlacementPolicy,
  Planner,
)
from sparse_prefix_jax.placement.background import Job

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
  st.sampled_from(sorted({*PLACEMENTS} - {*SHARED})),
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
  with pytest.raises(ValueError, match="overlap_tokens is -1; it must be"):
    planner.observe(-1)
  assert planner.observations == 0
  with pytest.raises(ValueError, match="depths is 1; it must be at least 2"):
    Planner(PlacementPolicy("last"), depths=1)


def serving(policy, **options):
  return Planner(policy, depths=64, serving=True, **options)


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129])
def test_the_last_place_a_prompt_can_be_resumed_from(length):
  """A prompt resumes before its last token, whose logits are wanted."""
  policy = PlacementPolicy("last")
  paper = Planner(policy, depths=8)
  deepest = {63: (), 64: (), 65: (64,), 127: (64,), 128: (64,), 129: (128,)}
  whole = {63: (), 64: (64,), 65: (64,), 127: (64,), 128: (128,), 129: (128,)}
  assert serving(policy).positions(length) == deepest[length]
  assert paper.positions(length) == whole[length]


def test_other_policies_keep_a_place_at_the_end():
  """A prompt that goes on where another ended can be resumed from there."""
  for name, budget in (("block", 64), ("dyadic", 64)):
    assert 128 in serving(PlacementPolicy(name, budget)).positions(128)
  planner = serving(PlacementPolicy("optimal", 1, every=1))
  for _ in range(2):
    planner.observe(128)
  assert planner.positions(128) == (128,)


@pytest.mark.parametrize("name", ["dp", "optimal"])
@pytest.mark.parametrize("background", [True, False])
def test_a_plan_takes_effect_after_as_many_observations_again(name, background):
  planner = serving(PlacementPolicy(name, 1, every=4), background=background)
  placed = []
  for overlap in [320] * 4 + [640] * 12:
    planner.observe(overlap)
    placed.append(planner.positions(2000))
  assert placed[:7] == [(960,)] * 7  # like `balanced`
  assert placed[7:11] == [(320,)] * 4  # begun after the fourth
  assert placed[11:] == [(640,)] * 5  # begun after the eighth


def test_with_every_request_planned_the_plan_is_one_behind():
  policy = PlacementPolicy("optimal", 1, every=1, decay=1e-6)
  planner, placed = serving(policy), []
  for overlap in (64, 128, 192, 256):
    planner.observe(overlap)
    placed.append(planner.positions(256))
  assert placed == [(128,), (64,), (128,), (192,)]


def test_a_wave_that_is_observed_first_takes_the_newest_plan_that_is_due():
  planner = serving(PlacementPolicy("optimal", 1, every=4, decay=1e-6))
  for overlap in [64] * 4 + [128] * 4 + [192] * 4 + [256] * 3:
    planner.observe(overlap)
  assert planner.positions(2000) == (128,)
  planner.observe(256)
  assert planner.positions(2000) == (192,)


@pytest.mark.parametrize("name, budget", [("optimal", 2), ("conditional", 1.5)])
@pytest.mark.parametrize("replan", ["frozen", "periodic", "decaying"])
@pytest.mark.parametrize("warming_up", [True, False])
def test_a_thread_or_none_places_alike(name, budget, replan, warming_up):
  policy = PlacementPolicy(name, budget, every=3, replan=replan)
  placed = []
  for background in (True, False):
    planner = serving(policy, background=background, warming_up=warming_up)
    rng, matched = np.random.default_rng(0), None
    for number in range(60):
      length = int(rng.integers(1, 4000))
      overlap = int(rng.integers(0, length)) if matched else 0
      entry = planner.describe(length, overlap, matched)
      planner.observe(overlap, entry=entry, matched=matched)
      # Some wait for the rest of their wave.
      if number % 7 < 4:
        placed.append(planner.positions(length, entry))
      if number == 25 and warming_up:
        planner.end_warmup()
      matched = entry
  half = len(placed) // 2
  assert placed[:half] == placed[half:]
  assert len(set(placed)) > 5


def test_a_frozen_plan_is_the_only_one():
  policy = PlacementPolicy("optimal", 1, every=4, replan="frozen")
  planner, placed = serving(policy), []
  for overlap in [320] * 4 + [640] * 20:
    planner.observe(overlap)
    placed.append(planner.positions(2000))
  assert placed == [(960,)] * 7 + [(320,)] * 17


def test_the_end_of_a_warm_up_waits_for_its_plan_and_gives_up_others():
  planner = serving(PlacementPolicy("conditional", 1, every=4), warming_up=True)
  entry = Features(1280)
  for _ in range(7):
    planner.observe(640, entry=entry, matched=entry)
  planner.end_warmup()
  plan = planner._learner._plan
  planner.observe(640, entry=entry, matched=entry)
  assert planner.positions(1280) == (640,)
  assert planner._learner._plan is plan


def test_the_first_place_of_conditional_needs_no_plan():
  """An entry is placed as if all were like it."""
  planner = serving(PlacementPolicy("conditional", 1, every=100))
  assert planner._learner._plan is None
  planner.observe(0, entry=Features(1280))
  assert len(planner.positions(1280)) == 1
  assert planner._learner._plan is None


def test_conditional_soon_places_by_what_it_has_seen():
  planner = serving(PlacementPolicy("conditional", 1, every=100))
  converse(planner, 60, tail=64)
  assert planner.positions(1280) == (1280 - 64,)


@pytest.mark.parametrize("background", [True, False])
def test_a_plan_that_fails_is_raised_once_and_the_last_one_stays(background):
  planner = serving(
    PlacementPolicy("optimal", 1, every=2, decay=1e-6), background=background
  )

  def observe_two(overlap, planning=None):
    with pytest.MonkeyPatch.context() as patch:
      if planning:
        patch.setattr(planner._learner, "planning", lambda: planning)
      planner.observe(overlap)
      planner.observe(overlap)

  def no_room():
    raise MemoryError("no room for a plan")

  observe_two(320)
  observe_two(640, no_room)
  assert planner.positions(2000) == (320,)
  observe_two(960)
  with pytest.raises(MemoryError, match="no room for a plan"):
    planner.positions(2000)
  assert planner.positions(2000) == (320,)
  observe_two(1280)
  assert planner.positions(2000) == (960,)


@pytest.mark.parametrize("background", [True, False])
def test_an_interrupted_wait_leaves_the_planner_as_it_was(
  background, monkeypatch
):
  planner = serving(
    PlacementPolicy("optimal", 1, every=2), background=background
  )
  for _ in range(4):
    planner.observe(320)
  result, calls = Job.result, []

  def interrupted_once(job):
    calls.append(1)
    if len(calls) == 1:
      raise KeyboardInterrupt
    return result(job)

  monkeypatch.setattr(Job, "result", interrupted_once)
  with pytest.raises(KeyboardInterrupt):
    planner.positions(2000)
  assert planner.positions(2000) == (320,)
  assert planner.positions(2000) == (320,) and len(calls) == 2


@pytest.mark.parametrize("name", ["optimal", "conditional"])
def test_places_spare_the_true_cost(name):
  """Where deep chunks cost more than all others, the state goes there."""
  steep = np.cumsum([0, *[1] * 14, 1000, *[1] * 48])
  entry, depths = Features(1280), [{}, {}]
  for placed, cost in zip(depths, (None, steep)):
    planner = Planner(PlacementPolicy(name, 1, decay=1.0), depths=64, cost=cost)
    for overlap in [640] * 8 + [960] * 2:
      planner.observe(overlap, entry=entry, matched=entry)
    placed["at"] = planner.positions(1280, entry)
  assert depths == [{"at": (640,)}, {"at": (960,)}]


@pytest.mark.parametrize(
  "cost, sentence",
  [
    ([0, 1, 2], "cost must have one value per depth, got 3 for 4"),
    ([0, 2, 1, 3], "cost must not decrease, got 1 after 2 at depth 2"),
    ([1, 2, 3, 4], "cost must be 0 at depth 0, got 1"),
    ([0, 1, 2, float("nan")], "cost must be finite"),
    ([[0, 1]], "cost must be one-dimensional"),
  ],
)
def test_bad_costs_are_refused(cost, sentence):
  for name, budget in (("optimal", 1), ("last", None)):
    with pytest.raises(ValueError, match=sentence):
      Planner(PlacementPolicy(name, budget), depths=4, cost=cost)


def test_a_budget_beyond_any_float_is_the_number_of_depths():
  planner = Planner(PlacementPolicy("conditional", 10**400), depths=8)
  entry = Features(512)
  planner.observe(320, entry=entry, matched=entry)
  assert planner.positions(512, entry) == tuple(range(64, 449, 64))


def test_plans_can_be_compiled_ahead():
  for name, budget in BUDGETS.items():
    planner = serving(PlacementPolicy(name, budget))
    planner.compile()
    assert planner.observations == 0
    assert planner.positions(640) == serving(
      PlacementPolicy(name, budget)
    ).positions(640)


def test_placements_under_one_budget_have_no_planner():
  with pytest.raises(ValueError, match="placement adaptive is for one budget"):
    Planner(PlacementPolicy("adaptive"), depths=8)


def test_a_server_weighs_states_by_the_cost_and_places_no_single_entry():
  policy, cost = PlacementPolicy("adaptive"), np.array([0, 5, 9, 10])
  planner = Planner(policy, depths=4, cost=cost, serving=True)
  planner.observe(100)
  assert planner.positions(640) == ()
  costs = [planner.worth._learner._cost(depth) for depth in (1, 3, 9)]
  assert costs == [5, 10, 10]
  assert planner.fresh().worth.held_count == 0
  assert Planner(PlacementPolicy("last"), depths=4, serving=True).worth is None


@pytest.mark.parametrize("background", [True, False])
def test_a_fresh_planner_plans_where_the_first_one_does(background):
  policy = PlacementPolicy("optimal", 1, chunk=16)
  first = Planner(policy, depths=4, serving=True, background=background)
  assert first.fresh()._under_way._background is background
