import itertools

import numpy as np
import pytest

from sparse_prefix_jax.evaluation.anchor_rules import Path
from sparse_prefix_jax.placement.bounds import (
  hindsight,
  intervals_of,
  upper_bound,
)

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")


def paths_of(prompts):
  """What `tree_paths` gives; nobody reads the entry here."""
  numbers, paths = {}, []
  for prompt in prompts:
    prefixes = [tuple(prompt[:k]) for k in range(1, len(prompt) + 1)]
    seen = sum(prefix in numbers for prefix in prefixes)
    nodes = [numbers.setdefault(prefix, len(numbers)) for prefix in prefixes]
    paths.append(Path(tuple(nodes), seen, -1))
  return paths


def tiny(seed):
  """A few short words over two letters, and a number of slots."""
  random = np.random.default_rng(seed)
  sizes = random.integers(1, 5, random.integers(4, 13))
  words = [random.integers(0, 2, size).tolist() for size in sizes]
  return paths_of(words), int(random.integers(1, 4))


def most_saved(paths, slots, warmup=0):
  """Every set of states that could be held after every request."""
  best = {frozenset(): 0}
  for position, path in enumerate(paths):
    after = {}
    for held, saved in best.items():
      depths = [k for k, n in enumerate(path.nodes, start=1) if n in held]
      total = saved + max(depths, default=0) * (position >= warmup)
      reachable = sorted(held | {*path.nodes})
      for size in range(min(slots, len(reachable)) + 1):
        for kept in map(frozenset, itertools.combinations(reachable, size)):
          after[kept] = max(after.get(kept, 0), total)
    best = after
  return max(best.values())


@pytest.mark.parametrize("part", range(6))
def test_between_exhaustive_search_and_one_percent_above(part):
  """300 tiny streams, 50 at a time."""
  for seed in range(50 * part, 50 * part + 50):
    paths, slots = tiny(seed)
    intervals = intervals_of(paths)
    bound = upper_bound(intervals, slots)
    most = most_saved(paths, slots)
    assert hindsight(intervals, bound, slots) <= most <= bound.blocks, seed
    assert bound.blocks <= 1.01 * most, seed


@pytest.mark.parametrize("seed", range(20))
def test_only_measured_requests_count(seed):
  paths, slots = tiny(seed)
  warmup = len(paths) // 2
  bound = upper_bound(intervals_of(paths, warmup=warmup), slots)
  most = most_saved(paths, slots, warmup)
  assert most <= bound.blocks <= 1.01 * most


@pytest.mark.parametrize("slots", [1, 5, 25])
def test_a_feasible_plan_is_never_above_and_often_near(slots):
  random = np.random.default_rng(slots)
  prompts, talks = [], [[i] for i in range(60)]
  for number in range(800):
    talk = talks[int(random.zipf(1.3)) % len(talks)]
    talk += [number] * int(random.integers(1, 4))
    prompts.append(list(talk))
    if len(talk) > 40:
      del talk[1:]
  paths = paths_of(prompts)
  intervals = intervals_of(paths)
  bound = upper_bound(intervals, slots)
  plan = hindsight(intervals, bound, slots)
  assert 0.97 * bound.blocks <= plan <= bound.blocks
  assert bound.blocks <= sum(path.seen for path in paths)
  assert (bound.prices >= 0).all() and bound.prices.shape == (800,)


def test_more_slots_than_prefixes_save_all_there_is():
  paths, _ = tiny(3)
  bound = upper_bound(intervals_of(paths), 99)
  assert bound.blocks == sum(path.seen for path in paths)
  assert not bound.prices.any()


@pytest.mark.parametrize("prompts", [[], [[]], [[1], [2]], [[], [1, 2], [3]]])
def test_streams_without_reuse_have_a_bound_of_zero(prompts):
  intervals = intervals_of(paths_of(prompts))
  bound = upper_bound(intervals, 3)
  assert bound.blocks == 0 == hindsight(intervals, bound, 3)


def test_a_negative_number_of_states_is_refused():
  intervals = intervals_of([Path((0,), 0, -1)])
  with pytest.raises(ValueError, match="slots must not be negative, got -1"):
    upper_bound(intervals, -1)
