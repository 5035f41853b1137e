"""The order in which states go."""

import contextlib
import itertools

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import (
  EVICTIONS,
  Budget,
  EvictionRule,
  Lru,
  PrefixIndex,
  Ranked,
  Worth,
  placement_for,
  register_eviction,
  unregister_eviction,
)
from sparse_prefix_jax.cache.index.eviction import make_eviction
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.capacity import check_eviction
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from tests.cache.index.short_prompts import look_up, store


def filled(eviction):
  """Three states, of prompts 0, 1 and 2."""
  budget = Budget(1000, 100, 10, slots=3, pages=9)
  index = PrefixIndex(budget, eviction)
  for i in range(3):
    store(index, [i] * 8, depths=(2,))
  return index


def prompts(index):
  return [s.node.key[3] for s in index.states]


@pytest.mark.parametrize(("eviction", "left"), [("fifo", 0), ("lru", 1)])
def test_a_hit_saves_a_state_under_lru_only(eviction, left):
  index = filled(eviction)
  index.use(look_up(index, [0] * 9))
  index.reserve(1, 0)
  assert sorted({0, 1, 2} - set(prompts(index))) == [left]


@pytest.mark.parametrize("eviction", ["fifo", "lru"])
def test_probation_goes_first_until_a_hit(eviction):
  index = filled(eviction)
  index.demote([index.states[-1]])
  assert prompts(index) == [2, 0, 1]
  index.use(look_up(index, [2] * 9))
  assert prompts(index) == [0, 1, 2]


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_pinned_states_are_passed_over(eviction):
  index = filled(eviction)
  pin = index.pin(look_up(index, [0] * 9).node)
  index.demote([pin.state])
  index.reserve(1, 0)
  assert prompts(index) == [0, 2]


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_rule_keeps_its_interface(eviction):
  rule = make_eviction(eviction)
  assert isinstance(rule, EvictionRule) and len(rule) == 0
  assert list(rule) == [] and object() not in rule


@pytest.mark.parametrize("name", ["newest", ""])
def test_an_unknown_rule_is_refused(name):
  with pytest.raises(
    ValueError, match="eviction must be one of branch_lru, fifo"
  ):
    PrefixIndex(Budget(1, 1, 1), name)


class Needs(Lru):
  def __init__(self, size):
    super().__init__()


class Answers(Ranked):
  """Says what it is told to say."""

  says = None

  def ranks(self, states):
    return self.says(states)


def answers(says):
  return type("Own", (Answers,), {"says": staticmethod(says)})


class Forgetful(Lru):
  def __init__(self):
    self.size = 0


ONE = Lru()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  ("make", "complaint"),
  [
    (Needs, "must be called without arguments to make a rule, got .*size"),
    (Forgetful, r"says how many states it has, got .* calls super\(\)"),
    (lambda: ONE, "must make a new rule that knows no state every time"),
    (
      itertools.cycle([Lru(), filled(Lru)._order.rule]).__next__,
      "must make a new rule",
    ),
    (lambda: Lru, "must make an EvictionRule .* got <class"),
    (lambda: None, "must make an EvictionRule"),
    (np.zeros(3), r"must be one of .*, got array\(\[0\., 0\., 0\.\]\)"),
    (Lru(), "must be one of"),
    (Worth, "eviction Worth weighs states, as placement adaptive does, got"),
  ],
)
def test_what_makes_no_rule_is_refused_when_a_store_is_made(make, complaint):
  planner = Planner(PlacementPolicy("last", chunk=4), depths=16, serving=True)
  with pytest.raises(ValueError, match=complaint):
    PrefixStore(Budget(1000, 100, 10), planner, chunk=4, eviction=make)


@pytest.mark.usefixtures("unchecked_types")
def test_a_name_of_ones_own_is_given_and_taken_back():
  register_eviction("mine", Lru)
  with pytest.raises(ValueError, match="unregister_eviction"):
    register_eviction("mine", Lru)
  unregister_eviction("mine")
  for name in ("mine", "lru", None):
    with pytest.raises(ValueError, match="one that was registered"):
      unregister_eviction(name)
  with pytest.raises(ValueError, match="make must be callable"):
    register_eviction("mine", 5)
  register_eviction("mine", Worth)
  planner = Planner(PlacementPolicy("last", chunk=4), depths=16, serving=True)
  try:
    with pytest.raises(ValueError, match="eviction mine weighs states"):
      PrefixStore(Budget(1000, 100, 10), planner, chunk=4, eviction="mine")
  finally:
    unregister_eviction("mine")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  ("says", "complaint"),
  [
    (lambda states: [0.0], "one rank for each of 2 states"),
    (lambda states: None, "one rank for each of 1 states, got None"),
    (lambda states: [np.nan for _ in states], r"an order, got \[nan\]"),
    (lambda states: [None for _ in states], r"order, got \[None, None\]"),
    (lambda states: np.zeros((len(states), 2)), "have an order, got array"),
    (lambda states: {1}, r"an order, got \{1\}"),
  ],
)
def test_ranks_without_an_order_are_refused(says, complaint):
  with pytest.raises(ValueError, match=complaint):
    filled(answers(says))


@pytest.mark.usefixtures("unchecked_types")
def test_a_rule_cannot_put_what_it_ranks_in_another_order():
  def sorting(states):
    states.sort(key=lambda state: -state.node.depth)
    return range(len(states))

  with pytest.raises(AttributeError, match=r"'tuple' .* no attribute 'sort'"):
    filled(answers(sorting))


def naming(names):
  return type("Own", (Lru,), {"victim": names})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  ("names", "complaint"),
  [
    (lambda rule, short: None, "named no state and took no offer back"),
    (lambda rule, short: next(iter(())), "named no state and took no"),
    (lambda rule, short: "a", "named a state that this cache does not hold"),
    (
      lambda rule, short: next(state for state in rule if state.pins),
      "named the state at depth 2, which a running sequence holds",
    ),
  ],
)
def test_a_rule_that_names_no_victim_has_failed(names, complaint):
  Own = naming(Lru.victim)
  index = filled(Own)
  pin, rule = index.pin(look_up(index, [0] * 9).node), index._order.rule
  Own.victim = names
  with pytest.raises(ValueError, match=complaint):
    index.reserve(1, 0)
  assert index._order.rule is not rule and len(index._order.rule) == 3
  Own.victim = Lru.victim
  index.reserve(1, 0)
  index.unpin(pin)
  index.check()


@pytest.mark.usefixtures("unchecked_types")
def test_an_array_is_no_eviction_of_a_cache_or_a_simulation():
  for check in (placement_for, lambda e: check_eviction("bytes", e)):
    with contextlib.suppress(ValueError):
      assert check(np.zeros(3)) == "last"
