"""What is stored of an answer that ends on a lattice point, or beside it."""

import numpy as np
import pytest

from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.contract.stored import compare_stored
from sparse_prefix_jax.evaluation import ModelSizes
from sparse_prefix_jax.evaluation.store_rules import (
  make_store,
  serve,
  store_planner,
)
from sparse_prefix_jax.placement import PlacementPolicy
from tests.models_for_tests import answers, cold_runs, small_config
from tests.serving.scheduler.scenes import (
  CHUNK,
  SHORT,
  expected_ids,
  new_cache,
  new_scheduler,
  steps_until_idle,
  submit,
)

# Long answers, token by token: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

SIZES = ModelSizes.of_model(small_config(), CHUNK)
TOTALS = (63, 64, 65, 127, 128)


def prompt():
  """The request that all here make."""
  return answers().prompts[SHORT]


def deepest(store, ids):
  """Where somebody who goes on from these ids resumes."""
  more = np.append(ids, np.zeros(CHUNK, np.int32)).astype(np.int32)
  return store.match(Request.of_tokens(more, CHUNK)).resume_blocks * CHUNK


def simulated(ids):
  """The same by the simulator, which knows no scheduler."""
  planner = store_planner(
    PlacementPolicy("last", chunk=CHUNK), SIZES, depths=16
  )
  store = make_store(
    planner, SIZES, capacity_bytes=1 << 24, longest=256, eviction="lru"
  )
  size = prompt().size
  request = Request.of_tokens(ids[:size], CHUNK)
  serve(store, request, ids[size:].tolist())
  return deepest(store, ids)


def end_by_length(scheduler, answer):
  submit(scheduler, SHORT, max_tokens=len(answer))


def end_by_a_stop_token(scheduler, answer):
  submit(scheduler, SHORT, max_tokens=130, stop_tokens=[answer[-1]])


def end_of_a_held_one(scheduler, answer):
  handle = submit(scheduler, SHORT, max_tokens=len(answer), held=True)
  while not scheduler.idle:
    scheduler.step()
  scheduler.cancel(handle)


def end_by_the_caller(scheduler, answer):
  handle, told = submit(scheduler, SHORT, max_tokens=130), 0
  while told < len(answer):
    told += sum(hasattr(event, "id") for event in scheduler.step())
  scheduler.cancel(handle)


ENDS = (
  end_by_length,
  end_by_a_stop_token,
  end_of_a_held_one,
  end_by_the_caller,
)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("total", TOTALS)
def test_every_whole_chunk_that_was_told_is_stored(total, end, overlap):
  answer = expected_ids(SHORT, total - prompt().size)
  if end is end_by_a_stop_token and answer.index(answer[-1]) + 1 < len(answer):
    answer = answer[: answer.index(answer[-1]) + 1]
    total = prompt().size + len(answer)
  ids = np.append(prompt(), answer).astype(np.int32)
  cache = new_cache("last")
  scheduler = new_scheduler(cache, overlap=overlap)
  end(scheduler, answer)
  steps_until_idle(cache, scheduler)
  assert deepest(cache.store, ids) == total // CHUNK * CHUNK == simulated(ids)
  assert compare_stored(cache, cold_runs()).bits == 0
  assert cache.sequences == ()


def test_what_the_caller_does_not_keep_is_not_computed():
  cache = new_cache("last")
  scheduler = new_scheduler(cache)
  answer = expected_ids(SHORT, 64 - prompt().size)
  handle = submit(scheduler, SHORT, max_tokens=len(answer), held=True)
  while not scheduler.idle:
    scheduler.step()
  scheduler.cancel(handle, keep=63)
  assert deepest(cache.store, np.append(prompt(), answer)) == 48


def test_those_that_end_at_once_are_one_program(monkeypatch):
  cache = new_cache("last")
  scheduler = new_scheduler(cache)
  sizes = []
  prefill = scheduler._stepper._dispatcher.prefill
  monkeypatch.setattr(
    scheduler._stepper._dispatcher,
    "prefill",
    lambda segments, choosing: (
      sizes.append(len(segments)) or prefill(segments, choosing)
    ),
  )
  for seed in range(3):
    submit(scheduler, SHORT, seed, max_tokens=32 - prompt().size)
  steps_until_idle(cache, scheduler)
  assert sizes[-2:] == [1, 2]  # The first one computed their prefix.
  assert compare_stored(cache, cold_runs()).bits == 0
