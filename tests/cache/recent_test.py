import numpy as np

from sparse_prefix_jax.cache import recent
from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import serve
from sparse_prefix_jax.placement import PlacementPolicy, Planner

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
    assert len(stats.recent.visits) == 25 > stats.recent.requests
    assert 0 < stats.percent_of_upper_bound < 100
