import numpy as np
import pytest

from sparse_prefix_jax.evaluation import Capacity, simulate
from sparse_prefix_jax.evaluation.anchor_rules import (
  overlap_tokens,
  place_adaptively,
  replay_adaptive,
  replay_states,
  told_depths,
  tree_paths,
  wanted_depths,
)
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.workloads import Trace, TraceRequest, token_trace


def random_trace(seed, requests=120):
  """Blocks of 2 tokens over two letters: many shared prefixes."""
  rng = np.random.default_rng(seed)
  rows = [rng.integers(0, 2, rng.integers(1, 14)) for _ in range(requests)]
  return token_trace("random", rows, [0] * requests)


def naive(trace, wanted, slots, lru, whole_path):
  """The rules with lists of prefixes instead of trees and stamps."""
  seen, held, saved, overlap = set(), [], 0, 0
  for request in trace.requests:
    tokens = request.ids.tolist()
    path = [tuple(tokens[: 2 * k]) for k in range(1, len(tokens) // 2 + 1)]
    depth = max((k + 1 for k, p in enumerate(path) if p in held), default=0)
    saved += 2 * depth
    overlap += 2 * sum(p in seen for p in path)
    seen.update(path)
    if lru and depth:
      for prefix in path[0 if whole_path else depth - 1 : depth]:
        if prefix in held:
          held.remove(prefix)
          held.append(prefix)
    new = [path[k - 1] for k in wanted(len(tokens)) if k > depth]
    for prefix in new[-slots:]:
      if len(held) == slots:
        held.pop(0)
      held.append(prefix)
  return saved, overlap


@pytest.mark.parametrize("slots", [1, 3, 10, 1000])
@pytest.mark.parametrize(
  "eviction, whole_path", [("fifo", False), ("lru", False), ("lru", True)]
)
def test_equals_a_naive_cache(slots, eviction, whole_path):
  trace = random_trace(slots)
  policy = PlacementPolicy("balanced", 3, chunk=2)
  reference = Planner(policy, depths=9)
  paths = tree_paths(trace, 2)
  planner = Planner(policy, depths=9)
  tally = replay_states(
    trace,
    wanted_depths(trace, planner, paths, warmup=0),
    paths,
    chunk=2,
    slots=slots,
    warmup=0,
    eviction=eviction,
    whole_path=whole_path,
  )
  expected = naive(
    trace,
    lambda length: [p // 2 for p in reference.positions(length)],
    slots,
    eviction == "lru",
    whole_path,
  )
  assert (tally.tokens_saved, tally.reusable_tokens) == expected
  assert tally.peak <= slots


def test_paths_of_hashed_blocks():
  """A trailing partial block has no id; equal ids mean equal prefixes."""
  ids = [[0, 1], [0, 2], [5, 1], [0, 1, 3]]
  requests = tuple(
    TraceRequest(ids=np.array(i, np.int32), length=16 * len(i) + 3) for i in ids
  )
  paths = tree_paths(Trace("blocks", requests, block=16), 16)
  assert [p.seen for p in paths] == [0, 1, 0, 2]
  assert [p.entry for p in paths] == [-1, 0, -1, 0]
  assert paths[3].nodes[:2] == paths[0].nodes
  assert paths[2].nodes[1] != paths[0].nodes[1]


def test_warm_up_is_not_counted():
  trace = random_trace(1, requests=10)
  planner = Planner(PlacementPolicy("last", chunk=2), depths=9, warming_up=True)
  paths = tree_paths(trace, 2)
  wanted = wanted_depths(trace, planner, paths, warmup=6)
  tally = replay_states(trace, wanted, paths, chunk=2, slots=5, warmup=6)
  assert tally.requests == 4
  assert tally.tokens_total == sum(r.length for r in trace.requests[6:])


@pytest.mark.parametrize("slots", [1, 5, 40])
def test_adaptive_resumes_from_what_it_holds(slots):
  """Every state was added by a request, and no more than K are held."""
  trace = random_trace(slots, requests=150)
  paths, policy = tree_paths(trace, 2), Adaptive(block=2)
  placed = []
  told = told_depths(trace, paths, 2)
  for one in place_adaptively(policy, paths, slots=slots, told=told):
    placed.append(one)
    assert policy.held_count <= slots
  assert all(one.resumed <= path.seen for one, path in zip(placed, paths))
  assert sum(len(one.depths) for one in placed) >= policy.held_count
  tally = replay_adaptive(
    trace, Adaptive(block=2), paths, chunk=2, slots=slots, warmup=30
  )
  assert tally.requests == 120 and tally.peak == min(slots, tally.peak)
  assert tally.tokens_saved == 2 * sum(one.resumed for one in placed[30:])
  assert tally.states == sum(len(one.depths) for one in placed[30:])


def templated(documents):
  """Each is asked about twice: a text of its own, a marker, a question."""
  random = np.random.default_rng(0)
  rows = []
  for _ in range(documents):
    text = [*random.integers(10, 500, 12 + random.integers(9)), 7, 8]
    rows += [np.array([*text, *random.integers(500, 999, 9)]) for _ in range(2)]
  return token_trace("templated", rows, [i // 2 for i in range(len(rows))])


def test_an_overlap_is_counted_in_tokens_where_they_are_known():
  trace = templated(4)
  paths = tree_paths(trace, 4)
  told = [overlap_tokens(trace, p, i, 4) for i, p in enumerate(paths)]
  lengths = [r.length - 9 for r in trace.requests]
  assert told[::2] == [0] * 4 and told[1::2] == lengths[1::2]
  same = token_trace("same", [np.arange(10)] * 2, groups=[0, 0])
  assert overlap_tokens(same, tree_paths(same, 4)[1], 1, 4) == 9


@pytest.mark.parametrize("name", ["optimal", "dp", "conditional"])
def test_a_prompt_of_whole_blocks_is_learned_as_its_hashes_are(name):
  """A match may reach its end: there the state is of use under these rules."""
  rows = [np.arange(first, first + 8) for first in [0, 0, 9, 0, 9, 0] * 6]
  tokens = token_trace("tokens", rows, [0] * 36)
  blocks = (TraceRequest(r[::4].astype(np.int32), 8) for r in rows)
  hashes = Trace("hashes", tuple(blocks), block=4)
  policy, capacity = PlacementPolicy(name, 1, 4, every=4), Capacity("states", 3)
  told = [simulate(trace, policy, capacity) for trace in (tokens, hashes)]
  assert told[0].tokens_saved == told[1].tokens_saved >= 8 * 24


def test_tokens_tell_adaptive_where_an_entry_will_be_left():
  trace = templated(30)
  paths = tree_paths(trace, 4)
  told = [*told_depths(trace, paths, 4)]
  wanted = [(r.length - 9) // 4 for r in trace.requests]
  assert told[6::2] == wanted[6::2]  # Two documents show the marker.
  saved = [
    sum(one.resumed for one in placed)
    for placed in (
      place_adaptively(Adaptive(block=4), paths, slots=2, told=told),
      place_adaptively(Adaptive(block=4), paths, slots=2),
    )
  ]
  assert saved[0] > saved[1]
  block = TraceRequest(ids=np.arange(5, dtype=np.int32), length=80)
  hashed = Trace("blocks", (block, block), block=16)
  assert [*told_depths(hashed, tree_paths(hashed, 16), 16)] == [0, 0]
