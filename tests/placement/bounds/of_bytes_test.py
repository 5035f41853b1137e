import itertools
import sys

import numpy as np
import pytest

from sparse_prefix_jax.placement.bounds import (
  Passage,
  hindsight_of_bytes,
  of_few,
  upper_bound_of_bytes,
)

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

STATE, PAGE = 3, 2


def prompts_of(words, blocks_left_out=0):
  """Numbered prefixes; every prompt has a token behind its whole blocks."""
  numbers, prompts = {}, []
  for word in words:
    prefixes = [tuple(word[:k]) for k in range(1, len(word) + 1)]
    nodes = [numbers.setdefault(prefix, len(numbers)) for prefix in prefixes]
    limit = max(len(word) - blocks_left_out, 0)
    prompts.append(Passage(tuple(nodes), limit, len(word) + 1))
  return prompts


def tiny(seed):
  """A few short words over two letters, and a capacity that all fit."""
  random = np.random.default_rng(seed)
  sizes = random.integers(1, 4, random.integers(4, 9))
  words = [random.integers(0, 2, size).tolist() for size in sizes]
  prompts = prompts_of(words, blocks_left_out=seed % 2)
  least = 2 * STATE + PAGE * max(prompt.pages for prompt in prompts)
  return prompts, least + int(random.integers(0, 9))


def pages_below(held, above):
  """All nodes on the ways to some, as a set."""
  found = set()
  for node in held:
    while node is not None and node not in found:
      found.add(node)
      node = above[node]
  return found


def most_saved(prompts, capacity, warmup=0):
  """Every set of states that could be held after every request."""
  above = {}
  for prompt in prompts:
    for parent, node in zip((None, *prompt.nodes), prompt.nodes):
      above[node] = parent
  best = {frozenset(): 0}
  for position, prompt in enumerate(prompts):
    after = {}
    for held, saved in best.items():
      for kept in subsets(held):
        free = pages_below(kept, above) - {*prompt.nodes}
        taken = STATE * (len(kept) + 2) + PAGE * (len(free) + prompt.pages)
        if taken > capacity:
          continue
        depths = [k for k, n in enumerate(prompt.nodes, 1) if n in kept]
        depths = [k for k in depths if k <= prompt.limit]
        total = saved + max(depths, default=0) * (position >= warmup)
        for then in subsets(kept | {*prompt.nodes}):
          pages = pages_below(then, above)
          if STATE * len(then) + PAGE * len(pages) <= capacity:
            after[then] = max(after.get(then, 0), total)
    best = after
  return max(best.values())


def subsets(nodes, most=3):
  for size in range(min(most, len(nodes)) + 1):
    yield from map(frozenset, itertools.combinations(sorted(nodes), size))


def bound_of(prompts, capacity, warmup=0):
  return upper_bound_of_bytes(
    prompts,
    capacity=capacity,
    state_bytes=STATE,
    page_bytes=PAGE,
    warmup=warmup,
  )


@pytest.mark.parametrize("part", range(4))
def test_never_below_exhaustive_search_nor_below_a_plan(part):
  """Three hundred tiny streams; the bound is what the best plan saves."""
  for seed in range(75 * part, 75 * part + 75):
    prompts, capacity = tiny(seed)
    bound = bound_of(prompts, capacity)
    most = most_saved(prompts, capacity)
    plan = hindsight_of_bytes(
      prompts, bound, capacity=capacity, state_bytes=STATE, page_bytes=PAGE
    )
    assert plan <= most == bound.blocks, seed
    assert (bound.prices >= 0).all()


def test_prices_alone_are_never_below_exhaustive_search(monkeypatch):
  """As of streams that are too long to try every plan."""
  monkeypatch.setattr(of_few, "_MOST_REQUESTS", 0)
  sums = np.zeros(2)
  for seed in range(60):
    prompts, capacity = tiny(seed)
    bound = bound_of(prompts, capacity).blocks
    most = most_saved(prompts, capacity)
    assert most <= bound, seed
    sums += bound, most
  assert 1.01 * sums[1] < sums[0] <= 1.15 * sums[1]


@pytest.mark.parametrize("seed", range(10))
def test_only_measured_requests_count(seed):
  prompts, capacity = tiny(seed)
  warmup = len(prompts) // 2
  bound = bound_of(prompts, capacity, warmup)
  assert most_saved(prompts, capacity, warmup) <= bound.blocks
  assert not bound.prices[: max(warmup - 1, 0)].any()


def conversations(seed, requests=400):
  """Conversations that go on, under one of two system prompts."""
  random = np.random.default_rng(seed)
  talks, words = [[i % 2, 100 + i] for i in range(40)], []
  for number in range(requests):
    talk = talks[int(random.zipf(1.4)) % len(talks)]
    talk += [1000 + number] * int(random.integers(1, 4))
    words.append(list(talk))
    if len(talk) > 30:
      del talk[2:]
  return prompts_of(words)


@pytest.mark.parametrize("capacity", [150, 400, 1200])
def test_a_plan_is_never_above_and_often_near(capacity):
  prompts = conversations(capacity)
  bound = bound_of(prompts, capacity)
  plan = hindsight_of_bytes(
    prompts, bound, capacity=capacity, state_bytes=STATE, page_bytes=PAGE
  )
  assert 0.8 * bound.blocks <= plan <= bound.blocks


def test_with_room_for_all_everything_is_saved():
  prompts = conversations(1)
  seen, saved = set(), 0
  for prompt in prompts:
    known = sum(node in seen for node in prompt.nodes)
    saved += min(known, prompt.limit)
    seen |= {*prompt.nodes}
  assert bound_of(prompts, 10**6).blocks == saved


@pytest.mark.parametrize("words", [[], [[]], [[1], [2]], [[], [1, 2], [3]]])
def test_streams_without_reuse_have_a_bound_of_zero(words):
  prompts = prompts_of(words)
  bound = bound_of(prompts, 1000)
  assert bound.blocks == 0 and bound.prices.size == len(prompts)


@pytest.mark.parametrize("name", ["capacity", "state_bytes", "page_bytes"])
def test_negative_sizes_are_refused(name):
  sizes = {"capacity": 9, "state_bytes": 1, "page_bytes": 1} | {name: -1}
  with pytest.raises(ValueError, match="must not be negative"):
    upper_bound_of_bytes(prompts_of([[1], [1]]), **sizes)


@pytest.mark.parametrize("seed", range(10))
def test_states_of_no_bytes_have_a_bound(seed, monkeypatch):
  prompts, capacity = tiny(seed)
  monkeypatch.setattr(sys.modules[__name__], "STATE", 0)
  bound = bound_of(prompts, capacity - 6)
  assert most_saved(prompts, capacity - 6) <= bound.blocks


def test_less_work_gives_a_bound_that_is_not_lower():
  prompts = conversations(3)
  sizes = {"capacity": 200, "state_bytes": STATE, "page_bytes": PAGE}
  rough = upper_bound_of_bytes(prompts, work=1, **sizes)
  assert rough.blocks >= upper_bound_of_bytes(prompts, **sizes).blocks
