from collections import OrderedDict

import numpy as np
import pytest

from sparse_prefix_jax.evaluation import look_up
from sparse_prefix_jax.evaluation.paper_rules import (
  replay_decisions,
  tally_decisions,
)
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.workloads import token_trace


def random_trace(seed, requests=80, groups=3):
  rng = np.random.default_rng(seed)
  rows = [rng.integers(0, 2, rng.integers(1, 12)) for _ in range(requests)]
  return token_trace("random", rows, rng.integers(0, groups, requests).tolist())


def naive_lookups(trace, capacity, lru):
  """Every entry compared with every request, one token at a time."""
  held, found = OrderedDict(), []
  for position, request in enumerate(trace.requests):
    best, entry = 0, -1
    for other in sorted(held):
      stored = trace.requests[other]
      if stored.group != request.group:
        continue
      common = 0
      for a, b in zip(stored.ids.tolist(), request.ids.tolist()):
        if a != b:
          break
        common += 1
      if common > best:
        best, entry = common, other
    if lru and entry >= 0:
      held.move_to_end(entry)
    held[position] = None
    evicted = held.popitem(last=False)[0] if len(held) > capacity else -1
    found.append((best, entry, evicted))
  return found


@pytest.mark.parametrize("eviction", ["fifo", "lru"])
@pytest.mark.parametrize("capacity", [1, 5, 200])
def test_lookups_equal_a_naive_cache(eviction, capacity):
  trace = random_trace(capacity)
  found = look_up(trace, capacity, eviction=eviction)
  ours = [(f.overlap, f.entry, f.evicted) for f in found]
  assert ours == naive_lookups(trace, capacity, eviction == "lru")


def test_earliest_entry_wins_a_tie():
  rows = [np.array(r) for r in ([1, 2, 3], [1, 2, 4], [1, 2, 5])]
  found = look_up(token_trace("t", rows, [0, 0, 0]), 10)
  assert [(f.overlap, f.entry) for f in found] == [(0, -1), (2, 0), (2, 0)]


def test_counts_by_hand():
  """Chunks of 4 tokens, a state every 4, and a cache of two sequences."""
  document = np.arange(20)
  rows = [document, document[:10], np.concatenate([document[:9], [99] * 5])]
  trace = token_trace("hand", [*rows, document], [0, 0, 0, 0])
  planner = Planner(
    PlacementPolicy("block", 4, chunk=4), depths=8, warming_up=True
  )
  decisions = replay_decisions(trace, planner, look_up(trace, 2), 1)
  tally = tally_decisions(decisions, warmup=1)
  # Overlaps 10, 9 and, with the first document gone, 10 again.
  assert tally.reusable_tokens == 29 and tally.hits == 3
  assert tally.tokens_saved == 8 + 8 + 8
  assert tally.requests == 3 and tally.tokens_total == 10 + 14 + 20
  assert tally.states == 2 + 3 + 5
  assert tally.peak == 8


def test_no_cache_looks_nothing_up():
  trace = random_trace(0)
  planner = Planner(PlacementPolicy("no_cache"), depths=8)
  decisions = replay_decisions(trace, planner, look_up(trace, 9), 0)
  tally = tally_decisions(decisions, warmup=0)
  assert tally.hits == tally.reusable_tokens == tally.peak == 0
  assert tally.requests == len(trace)
