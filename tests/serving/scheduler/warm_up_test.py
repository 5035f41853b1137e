"""A scheduler that is warmed up compiles no more, and has stored nothing."""

import jax
import pytest

from sparse_prefix_jax import Sampling
from sparse_prefix_jax.runtime import programs, sampler
from sparse_prefix_jax.serving.scheduler import Scheduler, dispatcher
from tests.models_for_tests import answers, small_model
from tests.serving.scheduler.scenes import (
  LONG,
  OTHER,
  SHORT,
  expected_ids,
  ids,
  new_cache,
  new_scheduler,
  steps_until_idle,
  submit,
)

COMPILED = (
  *(programs.prefill_group, programs.decode_step, programs.gather_rows),
  *(programs.head, sampler._sampled),
  *(dispatcher._next_tokens, dispatcher._keep_ids),
)


def compiled():
  return [program._cache_size() for program in COMPILED]


def test_nothing_is_compiled_that_was_compiled_before():
  jax.clear_caches()
  cache = new_cache()
  scheduler = Scheduler(small_model(), cache)
  sampling = [None, Sampling(temperature=1.0)]
  stages = [*scheduler.warm_up(sampling)]
  rungs = small_model().config.numerics.ladder
  assert len(stages) == len(rungs) + 1 and len({*stages}) == len(stages)
  assert compiled()[0] == len(rungs) and min(compiled()) > 0
  assert cache.stats() == new_cache().stats()
  before = compiled()
  for prompt in (LONG, SHORT, OTHER):
    for how in (None, Sampling(temperature=0.7, top_p=0.9, seed=3)):
      scheduler.submit(answers().prompts[prompt], sampling=how, max_tokens=20)
  while not scheduler.idle:
    scheduler.step()
  assert compiled() == before


def test_bits_are_those_of_a_scheduler_that_was_not():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  assert list(scheduler.warm_up())
  handle = submit(scheduler, LONG, max_tokens=12)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  assert ids(events, handle) == expected_ids(LONG, 12)


def test_who_begins_to_serve_is_not_warmed_up_further():
  """The seats that are tried in are those of requests then."""
  scheduler = new_scheduler(new_cache())
  stages = scheduler.warm_up()
  next(stages)
  submit(scheduler, SHORT)
  with pytest.raises(ValueError, match="warm a scheduler up"):
    next(stages)


def test_who_serves_is_not_warmed_up():
  scheduler = new_scheduler(new_cache())
  submit(scheduler, SHORT)
  with pytest.raises(ValueError, match="warm a scheduler up"):
    next(scheduler.warm_up())
