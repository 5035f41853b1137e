"""Expected against realised recomputation, and what was lost and why."""

import pytest

from sparse_prefix_jax.evaluation.store_rules import commit_all, serve
from tests.cache.store_scenes import ids, new_store, opened, request

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

DOCUMENT = [*range(1, 41)]


def question(number, **fields):
  return request([*DOCUMENT, *ids(7, number)], **fields)


def learned_store(placement, budget=None):
  """Documents with questions, the last of them at a known place."""
  store = new_store(placement, budget, slots=40, pages=400, eviction=None)
  for number in range(80):
    serve(store, question(number))
  return store


def test_who_has_no_statistics_expects_nothing():
  stats = learned_store("last").stats()
  assert stats.expected_lost_tokens is stats.realised_lost_tokens is None


@pytest.mark.parametrize(
  ("placement", "budget"), [("conditional", 2), ("adaptive", None)]
)
def test_what_was_expected_stands_beside_what_came_true(placement, budget):
  store = learned_store(placement, budget)
  before = store.stats()
  for number in range(80, 120):
    serve(store, question(number))
  stats = store.stats()
  expected = stats.expected_lost_tokens - before.expected_lost_tokens
  realised = stats.realised_lost_tokens - before.realised_lost_tokens
  known = stats.overlap_tokens - before.overlap_tokens
  assert realised == 0
  assert 0 <= expected < 0.1 * known


def test_a_request_carries_what_its_entry_was_expected_to_lose():
  store = learned_store("conditional", 2)
  running = opened(store, [*DOCUMENT, 7, 7])
  latest = running.match.deepest.latest
  assert running.expected_lost == latest.expected_lost is not None
  before = store.stats()
  commit_all(store, running)
  store.close(running)
  # What was looked at when it was opened is not asked for again.
  assert store.stats().expected_lost_tokens == before.expected_lost_tokens


def test_a_prompt_that_matches_nothing_is_expected_to_lose_nothing_or_unknown():
  store = learned_store("conditional", 2)
  assert opened(store, ids(30, 1000) + 1000).expected_lost is None


def test_a_replayed_request_counts_once():
  store = learned_store("adaptive")
  before = store.stats()
  serve(store, question(3, observed=True))
  stats = store.stats()
  assert stats.expected_lost_tokens == before.expected_lost_tokens
  assert stats.lost_tokens == before.lost_tokens


@pytest.mark.parametrize(
  ("placement", "seen"),
  [
    ("last", {"not_placed"}),
    ("sqrt", {"evicted"}),
    ("adaptive", {"not_placed", "evicted"}),
  ],
)
def test_tokens_lost_add_up_over_the_reasons(placement, seen):
  store = new_store(placement, slots=6, pages=60, eviction=None)
  for number in range(60):
    serve(store, request([*ids(12, number % 5), *ids(9, number)]))
  stats = store.stats()
  assert {*stats.lost_tokens} == {*stats.reasons}
  lost = stats.overlap_tokens - stats.saved_tokens
  assert sum(stats.lost_tokens.values()) == lost > 0
  told = {r for r in ("not_placed", "evicted") if stats.lost_tokens.get(r)}
  assert told == seen


def test_what_was_turned_down_is_told_from_what_nobody_placed():
  """Room for no state beside the two of a running sequence."""
  store = new_store("last", slots=2, pages=40)
  for _ in range(2):
    serve(store, request(ids(19)))
  assert store.stats().reasons == {"no_overlap": 1, "not_admitted": 1}
