import numpy as np
import pytest

from sparse_prefix_jax.cache.index import (
  EVICTIONS,
  Budget,
  PrefixIndex,
  Ranked,
  eviction_name,
  register_eviction,
)
from sparse_prefix_jax.cache.index.eviction import (
  GreedyDual,
  Marconi,
  eviction_for,
  make_eviction,
)
from tests.cache.index.short_prompts import look_up, store

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

OWN = ["branch_lru", "marconi", "greedy_dual"]


def an_index(eviction, slots=4):
  budget = Budget(10_000, 100, 10, slots=slots, pages=90)
  return PrefixIndex(budget, eviction)


def depths(index):
  return [state.node.depth for state in index.states]


@pytest.mark.parametrize("eviction", OWN)
@pytest.mark.parametrize("seed", range(4))
def test_a_full_index_adds_up_whatever_comes(eviction, seed):
  random, index = np.random.default_rng(seed), an_index(eviction, slots=6)
  for _ in range(60):
    prompt = random.integers(0, 2, int(random.integers(4, 24))).tolist()
    index.use(look_up(index, [*prompt, 0]))
    wanted = {len(prompt) // 4, int(random.integers(1, len(prompt) // 4 + 1))}
    store(index, prompt, depths=tuple(sorted(wanted)))
    index.check()
    assert len(index.states) <= 6


def test_marconi_weighs_recency_and_what_is_spared():
  """The oldest is the shallow one; the deep one spares most."""
  index = an_index(Marconi)
  store(index, [1] * 8, depths=(2,))
  store(index, [2] * 24, depths=(6,))
  store(index, [3] * 8, depths=(2,))
  assert index.states[0].node.key[3] == 1
  by_recency = an_index(lambda: Marconi(alpha=0.0))
  store(by_recency, [2] * 24, depths=(6,))
  store(by_recency, [1] * 8, depths=(2,))
  assert depths(by_recency) == [6, 2]


def test_marconi_keeps_a_state_with_several_below_it():
  index = an_index(Marconi, slots=9)
  for last in (5, 6):
    store(index, [1] * 8 + [last] * 8, depths=(2, 4))
  assert depths(index)[-1] == 2
  assert [state.node.depth for state in index.states[:2]] == [4, 4]


def test_greedy_dual_ages_what_is_not_used():
  """A long prompt that nobody asks for goes in the end, and not at first."""
  index = an_index(GreedyDual, slots=2)
  store(index, [9] * 20, depths=(5,))
  for number in range(8):
    store(index, [number] * 8, depths=(2,))
    assert (5 in depths(index)) == (number < 3), number


def test_branch_lru_makes_the_states_above_younger_too():
  index = an_index("branch_lru")
  store(index, [1] * 16, depths=(1, 4))
  store(index, [2] * 8, depths=(2,))
  index.use(look_up(index, [1] * 17))
  assert depths(index) == [2, 1, 4]


@pytest.mark.parametrize("eviction", ["branch_lru", "marconi"])
def test_branches_are_admitted(eviction):
  index = an_index(eviction)
  store(index, [1] * 16, depths=(4,))
  match = look_up(index, [1] * 8 + [2] * 8)
  assert match.overlap_blocks == 2
  assert list(index.proposed(match, 4)) == [2]
  assert list(index.proposed(match, 2)) == []
  assert list(an_index("lru").proposed(match, 4)) == []


class Shallow(Ranked):
  """The deepest goes last."""

  def ranks(self, states):
    return [state.node.depth for state in states]


def test_a_class_of_ones_own_is_a_rule_with_a_name_or_without():
  index = an_index(Shallow, slots=9)
  for depth in (3, 1, 2):
    store(index, [depth] * 12, depths=(depth,))
  assert depths(index) == [1, 2, 3]
  assert eviction_for("last", Shallow) is Shallow
  assert (eviction_name(Shallow), eviction_name("lru")) == ("Shallow", "lru")
  register_eviction("shallow", Shallow)
  try:
    assert isinstance(make_eviction("shallow"), Shallow)
    with pytest.raises(ValueError, match="name must be new"):
      register_eviction("shallow", Shallow)
  finally:
    del EVICTIONS["shallow"]


@pytest.mark.parametrize("wrong", [dict, object])
def test_what_makes_no_rule_is_refused(wrong):
  with pytest.raises(ValueError, match="must make an EvictionRule"):
    register_eviction("wrong", wrong)
  assert "wrong" not in EVICTIONS
  with pytest.raises(ValueError, match="must make an EvictionRule"):
    make_eviction(wrong)
  with pytest.raises(ValueError, match="evicts by its index"):
    eviction_for("adaptive", Shallow)
