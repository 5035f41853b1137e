"""Caches and schedulers that several tests of the scheduler share."""

import dataclasses

from sparse_prefix_jax import PrefixCache
from sparse_prefix_jax.contract import poison
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.serving.scheduler import TokenEvent
from tests.models_for_tests import cold_runs

CHUNK = 16


def new_cache(placement="last", *, slots=None, pages=None) -> PrefixCache:
  """An empty cache of the one size that is compiled, or a part of it."""
  budget = {"block": CHUNK}.get(placement)
  policy = PlacementPolicy(placement, chunk=CHUNK, budget=budget)
  cache = cold_runs().cache(policy, "lru")
  index = cache.store.index
  budget = index.budget
  slots, pages = slots or budget.slots, pages or budget.pages
  index.set_budget(dataclasses.replace(budget, slots=slots, pages=pages))
  return cache


def serve(cache, scheduler) -> list[list[TokenEvent]]:
  """Serves everything, with NaN in all that is free.

  Returns:
    What was told of each request, by the number of its handle.
  """
  told: dict[int, list[TokenEvent]] = {}
  for _ in range(2000):
    if scheduler.idle:
      break
    poison(cache)
    for event in scheduler.step():
      events = told.setdefault(event.handle.number, [])
      if isinstance(event, TokenEvent):
        events.append(event)
    cache.audit()
  assert scheduler.idle
  return [told[number] for number in sorted(told)]
