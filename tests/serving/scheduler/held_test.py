"""Requests that are held: their ends, their twins, who else ends them."""

import threading

import pytest

from sparse_prefix_jax import prefill
from sparse_prefix_jax.serving.scheduler import Ending, Finished, Started
from tests.models_for_tests import answers, small_model
from tests.serving.scheduler.scenes import (
  LONG,
  MIDDLE,
  OTHER,
  SHORT,
  endings,
  expected_ids,
  ids,
  new_cache,
  new_scheduler,
  steps_until_idle,
  submit,
)


@pytest.mark.parametrize("told", [False, True])
def test_what_is_over_does_not_go_on_twice(told):
  cache = new_cache()
  scheduler = new_scheduler(cache)
  held = submit(scheduler, SHORT, max_tokens=3, held=True)
  if told:
    steps_until_idle(cache, scheduler)
  else:
    scheduler.step()
    scheduler.end(held)
  with pytest.raises(ValueError, match="is over; it chooses no more"):
    scheduler.fork(held)
  steps_until_idle(cache, scheduler)
  scheduler.cancel(held)
  assert cache.sequences == ()


def test_what_ends_before_it_begins_holds_nothing():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  held = submit(scheduler, SHORT, held=True)
  other = submit(scheduler, OTHER, max_tokens=4)
  scheduler.end(held)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  assert [e for e in events if e.handle == held] == [
    Finished(held, Ending.STOP)
  ]
  assert ids(events, other) == expected_ids(OTHER, 4)
  assert cache.sequences == () and len(scheduler._stepper.line.waiting) == 0
  scheduler.cancel(held)
  assert scheduler.idle and scheduler.step() == ()


def test_what_ends_in_the_host_leaves_its_prompt():
  cache = new_cache("last", slots=8, pages=9)
  scheduler = new_scheduler(cache)
  first = submit(scheduler, MIDDLE, max_tokens=30)
  second = submit(scheduler, 7, max_tokens=30, held=True)
  events = []
  while not scheduler.counts["swapped_out"]:
    events += scheduler.step()
  scheduler.end(second)
  assert cache.store.swapped == ()
  events += [e for s in steps_until_idle(cache, scheduler) for e in s]
  assert endings(events) == {first.number: "length", second.number: "stop"}
  assert ids(events, first) == expected_ids(MIDDLE, 30)
  assert [type(e) for e in events].count(Started) == 2
  scheduler.cancel(second)
  cache.audit()


@pytest.mark.parametrize("size", [3, 30])
def test_a_deadline_leaves_what_is_held_to_its_caller(size):
  """Whether the request was over before it or is ended by it."""
  cache = new_cache()
  scheduler = new_scheduler(cache)
  held = submit(scheduler, SHORT, max_tokens=size, held=True, deadline=8)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  ends = endings(events)
  submit(scheduler, OTHER, max_tokens=9)
  steps_until_idle(cache, scheduler)
  assert ends == {held.number: Ending.LENGTH if size == 3 else Ending.DEADLINE}
  assert scheduler.steps > 8 and len(cache.sequences) == 1
  scheduler.cancel(held, keep=22)
  turn = [*answers().prompts[SHORT], *ids(events, held)]
  report = prefill(small_model(), cache, [turn]).reports[0]
  assert report.overlap == 22


def test_nobody_waits_for_a_prompt_that_was_ended():
  """It is computed no further, however long its caller takes to say so."""
  cache = new_cache()
  scheduler = new_scheduler(cache, token_budget=16)
  held = submit(scheduler, LONG, held=True)
  scheduler.step()
  scheduler.end(held)
  other = submit(scheduler, LONG, max_tokens=1)
  submit(scheduler, OTHER, max_tokens=40)
  steps = steps_until_idle(cache, scheduler)
  began = [any(isinstance(e, Started) for e in step) for step in steps]
  assert began.index(True) < 3 and len(cache.sequences) == 1
  events = [e for step in steps for e in step]
  assert ids(events, other) == expected_ids(LONG, 1)
  scheduler.cancel(held, keep=16)


def test_who_else_ends_a_sequence_is_told():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  taken, other = submit(scheduler, SHORT), submit(scheduler, OTHER)
  scheduler.step()
  cache.release(cache.sequences[:1])
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  (error,) = [e.error for e in events if getattr(e, "error", None)]
  assert endings(events)[taken.number] == "failed"
  assert str(error) == (
    "the sequence of the request was released, or belongs to another cache."
  )
  assert ids(events, other) == expected_ids(OTHER, 16)


def test_events_are_taken_before_another_call_may_begin(monkeypatch):
  cache = new_cache()
  scheduler = new_scheduler(cache)
  submit(scheduler, SHORT, max_tokens=2)
  told, waited = scheduler._stepper.told, []

  def slow():
    thread = threading.Thread(target=lambda: submit(scheduler, OTHER))
    thread.start()
    thread.join(timeout=0.2)
    waited.append((thread, thread.is_alive()))
    return told()

  with monkeypatch.context() as patch:
    patch.setattr(scheduler._stepper, "told", slow)
    scheduler.step()
  ((thread, was_alive),) = waited
  thread.join()
  assert was_alive
  steps_until_idle(cache, scheduler)


def test_who_is_held_and_released_by_others_stays_finished():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  held = submit(scheduler, LONG, max_tokens=2, held=True)
  steps_until_idle(cache, scheduler)
  cache.release(cache.sequences)
  other = submit(scheduler, OTHER, max_tokens=2)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  assert endings(events) == {other.number: "length"}
  with pytest.raises(ValueError, match="is finished"):
    scheduler.cancel(held)
