"""PrefixCache: what it refuses, holds and gives back."""

import jax
import numpy as np
import pytest

from sparse_prefix_jax import PrefixCache, decode, prefill
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime import programs, run
from tests.models_for_tests import small_config, small_model


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def new_cache(name="last", budget=None, **changes):
  fields = {
    "capacity": 1 << 20,
    "placement": PlacementPolicy(name, budget=budget, chunk=16),
  }
  return PrefixCache(small_model(), **(fields | changes))


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"capacity": 1000}, "capacity is 1000 bytes"),
    ({"capacity": -5}, "capacity must be a whole number of bytes"),
    ({"capacity": "4 parsecs"}, "capacity must be a whole number of bytes"),
    ({"eviction": "newest"}, "newest"),
    ({"placement": "everywhere"}, "everywhere"),
    ({"placement": PlacementPolicy("last", chunk=64)}, "chunk 64"),
    ({"state_share": 0.0}, "state_share is 0.0"),
    ({"state_share": 1.0}, "state_share is 1.0"),
  ],
)
def test_bad_choices_are_refused(changes, match):
  with pytest.raises(ValueError, match=match):
    new_cache(**changes)


def test_device_memory_stays_within_the_capacity():
  for capacity in (100_000, 1 << 20):
    cache = new_cache(capacity=capacity)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.pools))
    assert 0.9 * capacity < held <= capacity


def test_what_is_held_is_counted_exactly():
  cache = new_cache("balanced", budget=2)
  config = small_config()
  out = prefill(small_model(), cache, [random_tokens(100)])
  states, pages = 2 + 2, 7
  expected = states * state_bytes(config) + pages * page_bytes(config)
  assert cache.stats().held_bytes == expected
  cache.release(out.sequences)
  # Two states stay, at 32 and 64, and the pages that lead to them.
  expected -= 2 * state_bytes(config) + 3 * page_bytes(config)
  assert cache.stats().held_bytes == expected
  assert cache.sequences == ()


def test_shared_pages_count_once():
  cache, document = new_cache(), random_tokens(96)
  for i in range(3):
    prompt = np.append(document, random_tokens(10, i + 1))
    cache.release(prefill(small_model(), cache, [prompt]).sequences)
  assert cache.stats().held_pages == 6
  assert len(cache.store.index) == 3


def test_running_sequences_are_not_evicted():
  cache = new_cache(capacity=300_000)
  held = prefill(small_model(), cache, [random_tokens(60)]).sequences
  for seed in range(1, 9):
    out = prefill(small_model(), cache, [random_tokens(150, seed)])
    cache.release(out.sequences)
  assert cache.stats().evicted_states > 0
  assert cache.store.find(held[0]).length == 60
  longer = np.append(random_tokens(60), 3)
  (report,) = prefill(small_model(), cache, [longer]).reports
  assert report.resumed == 48


def test_planner_learns_overlaps_as_they_come():
  policy = PlacementPolicy("optimal", 1, 16, every=2)
  cache = new_cache(placement=policy)
  document = random_tokens(100)
  for seed in range(1, 13):
    prompt = np.append(document, random_tokens(30, seed))
    out = prefill(small_model(), cache, [prompt])
    cache.release(out.sequences)
  assert out.reports[0].resumed == 96
  assert cache.store.planner.positions(130) == (96,)


def test_conditional_serves_documents_of_different_lengths():
  """Bits as without a cache, and states where the documents end."""
  cache = new_cache("conditional", budget=1, capacity=2 << 20)
  uncached = new_cache("no_cache")
  documents = [random_tokens(size, size) for size in (48, 96, 144)]
  resumed = []
  for turn in range(24):
    document = documents[turn % 3]
    prompt = np.append(document, random_tokens(5, turn))
    out = prefill(small_model(), cache, [prompt])
    cold = prefill(small_model(), uncached, [prompt])
    bits = [o.logits[0].view(np.uint32) for o in (out, cold)]
    np.testing.assert_array_equal(*bits)
    resumed.append(out.reports[0].resumed == document.size)
    cache.release(out.sequences)
    uncached.release(cold.sequences)
  assert all(resumed[12:])
  entries = cache.store.index.entries
  assert sum(len(e.states) for e in entries) <= 1.5 * len(entries)


def test_entries_keep_what_the_placement_knew_of_them():
  cache = new_cache("conditional", budget=1)
  for seed, matched in ((1, None), (2, 0)):
    prompt = np.append(random_tokens(64), random_tokens(9, seed))
    out = prefill(small_model(), cache, [prompt])
    (sequence,) = out.sequences
    features = cache.store.find(sequence).features
    known = (0, 0) if matched is None else (64, 1)
    assert (features.overlap, features.age) == known
    assert (features.length, features.born) == (73, seed - 1)
    cache.release(out.sequences)
    assert cache.store.index.entries[-1].features == features


def test_release_refuses_one_named_twice():
  cache = new_cache()
  sequences = prefill(small_model(), cache, [random_tokens(20)]).sequences
  with pytest.raises(ValueError, match="named twice"):
    cache.release(sequences * 2)
  cache.release(sequences)


@pytest.mark.parametrize("verb", ["prefill", "decode"])
def test_learning_overlaps_the_device(monkeypatch, verb):
  """After a program was dispatched, before its result is fetched."""
  cache = PrefixCache(small_model(), capacity=1 << 20)
  tokens = np.arange(31, dtype=np.int32)
  (handle,) = prefill(small_model(), cache, [tokens]).sequences
  calls = []

  def noted(owner, name, what):
    works = getattr(owner, name)

    def call(*given, **named):
      calls.append(what)
      return works(*given, **named)

    monkeypatch.setattr(owner, name, call)

  noted(programs, "prefill_group", "dispatch")
  noted(cache.store, "catch_up", "learn")
  noted(run, "head_blocks", "head")
  noted(cache.store, "commit", "commit")
  if verb == "prefill":
    prefill(small_model(), cache, [np.append(tokens, 5)])
    assert calls[:3] == ["dispatch", "learn", "head"]
  else:  # completes a chunk
    decode(small_model(), cache, [handle], [7])
    assert calls[:3] == ["head", "dispatch", "learn"]
  assert calls.index("learn") < calls.index("commit")
