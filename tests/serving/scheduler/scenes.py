"""Caches and schedulers that several tests of the scheduler share."""

import dataclasses

import numpy as np

from sparse_prefix_jax import PrefixCache
from sparse_prefix_jax.contract import poison
from sparse_prefix_jax.contract.traffic import drawn_by
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.serving.scheduler import Finished, Scheduler, TokenEvent
from tests.models_for_tests import answers, cold_runs, small_model

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


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def new_scheduler(cache, **fields):
  fields = {"token_budget": 64} | fields
  return Scheduler(small_model(), cache, **fields)


def submit(scheduler, prompt, seed=0, **fields):
  """A request with a prompt of `answers`."""
  prompt = answers().prompts[prompt]
  return scheduler.submit(prompt, sampling=drawn_by(seed), **fields)


def ids(events, handle):
  return [
    e.id for e in events if isinstance(e, TokenEvent) and e.handle == handle
  ]


def endings(events):
  return {e.handle.number: e.why for e in events if isinstance(e, Finished)}


def steps_until_idle(cache, scheduler, limit=500):
  """All events, step by step, with NaN in all that is free."""
  steps = []
  while not scheduler.idle and len(steps) < limit:
    poison(cache)
    steps.append(scheduler.step())
    cache.audit()
  assert scheduler.idle
  return steps


def expected_ids(prompt, size, seed=0):
  return [step.id for step in answers().of(prompt, ((0, seed),), size)]


LONG, MIDDLE, SHORT = 3, 6, 2  # 100, 74 and 22 tokens
OTHER = 1  # 16 tokens of another document
