"""The order in which states go."""

import pytest

from sparse_prefix_jax.cache.index import (
  EVICTIONS,
  Budget,
  EvictionRule,
  PrefixIndex,
)
from sparse_prefix_jax.cache.index.eviction import make_eviction
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
