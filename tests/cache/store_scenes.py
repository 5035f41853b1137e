"""Small stores, prompts, and the calls of a request's life."""

import numpy as np

from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import commit_all
from sparse_prefix_jax.placement import PlacementPolicy, Planner

CHUNK = 4


def new_store(
  placement="last", budget=None, *, slots=20, pages=60, eviction="lru"
):
  policy = PlacementPolicy(placement, budget, CHUNK)
  room = Budget(100 * slots + 10 * pages, 100, 10, slots, pages)
  return PrefixStore(
    room,
    Planner(policy, depths=64, serving=True),
    chunk=CHUNK,
    eviction=eviction,
    stores=placement != "no_cache",
  )


def ids(size, seed=0):
  return np.random.default_rng(seed).integers(0, 500, size).astype(np.int32)


def request(tokens, **fields):
  return Request.of_tokens(np.asarray(tokens, np.int32), CHUNK, **fields)


def opened(store, tokens, **fields):
  (running,) = store.open([request(tokens, **fields)])
  return running


def computed(store, tokens, **fields):
  running = opened(store, tokens, **fields)
  commit_all(store, running)
  store.audit()
  return running


def decode(store, running, tokens):
  for token in tokens:
    store.advance([running])
    store.append(running, int(token))
    commit_all(store, running)
