import dataclasses
import json

import numpy as np
import pytest

from sparse_prefix_jax.cache import recent
from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import commit_all, serve
from sparse_prefix_jax.placement import PlacementPolicy, Planner

# Checks of types would take most of the time: bounds are searched many times.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK = 4


def a_store(capacity=4000, placement="adaptive"):
  planner = Planner(
    PlacementPolicy(placement, chunk=CHUNK), depths=64, serving=True
  )
  return PrefixStore(Budget(capacity, 100, 10), planner, chunk=CHUNK)


def a_request(ids, salt=b""):
  return Request.of_tokens(np.array(ids, np.int32), CHUNK, salt=salt)


def test_nothing_was_served():
  stats = a_store().stats()
  assert stats.recent.requests == 0
  assert (stats.upper_bound_tokens, stats.percent_of_upper_bound) == (0, 100)


def test_a_prompt_asked_twice_saves_all_that_can_be():
  store = a_store()
  for _ in range(3):
    serve(store, a_request(range(13)))
  stats = store.stats()
  assert stats.recent.requests == 3
  assert stats.saved_tokens == stats.upper_bound_tokens == 2 * 12
  assert stats.percent_of_upper_bound == 100


def test_tenants_have_nothing_in_common():
  store = a_store()
  for salt in (b"one", b"two"):
    serve(store, a_request(range(13), salt))
  assert store.stats().upper_bound_tokens == 0


def test_an_answer_is_something_to_resume_from():
  store = a_store()
  serve(store, a_request(range(9)), answer=range(9, 17))
  serve(store, a_request(range(30)))
  stats = store.stats()
  assert stats.upper_bound_tokens == stats.saved_tokens == 16


def test_no_placement_saves_more_than_the_bound_of_any_window(monkeypatch):
  monkeypatch.setattr(recent, "WINDOW", 25)
  random = np.random.default_rng(0)
  for placement in ("adaptive", "last"):
    store, talks = a_store(700, placement), [[n] * 6 for n in range(9)]
    for number in range(120):
      talk = talks[int(random.integers(9))]
      talk += [number] * int(random.integers(1, 9))
      del talk[60:]
      serve(store, a_request(talk), answer=[number] * int(random.integers(9)))
      stats = store.stats()
      assert stats.recent.saved_tokens <= stats.upper_bound_tokens
    assert stats.recent.requests == 25
    assert 0 < stats.percent_of_upper_bound < 100


@pytest.mark.parametrize(("slot", "page"), [(0, 10), (100, 0), (0, 0)])
def test_a_model_with_one_kind_of_layers_has_a_bound(slot, page):
  planner = Planner(PlacementPolicy("last", chunk=CHUNK), depths=64)
  room = Budget(400, slot, page, slots=40, pages=40)
  store = PrefixStore(room, planner, chunk=CHUNK)
  random = np.random.default_rng(0)
  for _ in range(60):
    first = 100 * int(random.integers(6))
    document = range(first, first + 40)
    serve(store, a_request([*document, *random.integers(0, 99, 5)]))
    stats = store.stats()
    assert stats.saved_tokens <= stats.upper_bound_tokens


def test_states_of_no_bytes_leave_all_room_to_pages():
  """Two requests, states for nothing: all of the first can be held."""
  planner = Planner(PlacementPolicy("last", chunk=CHUNK), depths=64)
  store = PrefixStore(Budget(4, 0, 1, slots=40, pages=4), planner, chunk=CHUNK)
  for _ in range(2):
    serve(store, a_request(range(13)))
  stats = store.stats()
  assert stats.saved_tokens == stats.upper_bound_tokens == 12


def test_a_prompt_computed_in_parts_is_never_above_the_bound():
  """It resumed from what others have pushed out before it was complete."""
  store = a_store(800, "last")
  serve(store, a_request(range(21)))
  (slow,) = store.open([a_request([*range(21), *range(5)])])
  for seed in range(6):
    serve(store, a_request(np.arange(20) + 100 * seed))
  while segment := store.next_segment(slow, CHUNK):
    store.commit(slow, segment)
  store.close(slow)
  stats = store.stats()
  assert 0 < stats.saved_tokens <= stats.upper_bound_tokens


def test_a_prompt_computed_again_leaves_what_can_be_kept():
  """Others leave no room for its state before that, and all room after it."""
  store = a_store(400, "last")
  for _ in range(2):
    (lost,) = store.open([a_request(range(21))])
    commit_all(store, lost)
    store.close(lost, keep=0)
  dropped = a_request(range(100, 121))
  (slow,) = store.open([dropped])
  store.commit(slow, store.next_segment(slow, CHUNK))
  store.drop(slow)
  for seed in range(5, 11):
    serve(store, a_request(np.arange(28) + 100 * seed))
  serve(store, dataclasses.replace(dropped, observed=True))
  serve(store, dropped)
  stats = store.stats()
  assert (stats.saved_tokens, stats.upper_bound_tokens) == (20, 40)
  assert stats.recent.requests == 9


def test_figures_can_be_written_as_json():
  store = a_store()
  for _ in range(2):
    serve(store, a_request(range(13)))
  figures = json.loads(json.dumps(store.stats()._asdict()))
  assert figures["recent"] == {"requests": 2, "saved_tokens": 12}
  assert figures["reasons"]


def test_a_flush_forgets_the_window():
  store = a_store()
  for _ in range(2):
    serve(store, a_request(range(13)))
  store.flush()
  assert store.stats().upper_bound_tokens == 0
  serve(store, a_request(range(13)))
  assert store.stats().recent.requests == 1
