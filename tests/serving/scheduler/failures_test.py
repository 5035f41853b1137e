"""The scheduler: what fails or is interrupted ends itself and nobody else."""

import signal
import sys
import threading

import jax
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, prefill
from sparse_prefix_jax.cache import canonical, identity
from sparse_prefix_jax.cache.index import Lru
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.serving.scheduler import (
  Ending,
  Finished,
  Scheduler,
)
from sparse_prefix_jax.serving.scheduler.stepper import Stepper
from tests.models_for_tests import small_model
from tests.serving.scheduler.scenes import (
  MIDDLE,
  OTHER,
  SHORT,
  endings,
  expected_ids,
  ids,
  new_cache,
  new_scheduler,
  random_tokens,
  serve,
  steps_until_idle,
  submit,
)


def test_a_request_that_fails_ends_nobody_else(monkeypatch):
  cache = new_cache()
  scheduler = new_scheduler(cache)
  good, bad = submit(scheduler, SHORT), submit(scheduler, MIDDLE)
  real = cache.store.open

  def failing(requests, also=None):
    if requests[0].length == 74:
      raise RuntimeError("a placement of the user's own")
    return real(requests, also)

  monkeypatch.setattr(cache.store, "open", failing)
  steps = steps_until_idle(cache, scheduler)
  events = [event for step in steps for event in step]
  assert endings(events)[bad.number] is Ending.FAILED
  (error,) = [e.error for e in events if isinstance(e, Finished) and e.error]
  assert "of the user's own" in str(error)
  assert ids(events, good) == expected_ids(SHORT, 16)


def test_who_cannot_be_stored_fails_alone(monkeypatch):
  cache = new_cache()
  scheduler = new_scheduler(cache)
  bad, good = submit(scheduler, SHORT, max_tokens=3), submit(scheduler, OTHER)
  close = canonical.store_past

  def failing(index, running, kept, chunk):
    if running.prompt_length == 22 and running.decoded:
      raise RuntimeError("an eviction of the user's own")
    close(index, running, kept, chunk)

  monkeypatch.setattr("sparse_prefix_jax.cache.store.store_past", failing)
  events = [e for step in steps_until_idle(cache, scheduler) for e in step]
  assert endings(events) == {
    bad.number: Ending.FAILED,
    good.number: Ending.LENGTH,
  }
  assert ids(events, good) == expected_ids(OTHER, 16)


@pytest.mark.parametrize("steps", [4, 12, 13])
def test_a_program_that_fails_ends_those_that_it_computes(monkeypatch, steps):
  """Six rows are two programs; the second one fails.

  Those of the first one have two steps that are unread, some at a lattice
  point.
  """
  cache = new_cache()
  scheduler = new_scheduler(cache)
  handles = [submit(scheduler, SHORT, seed=i % 2) for i in range(6)]
  events = [event for _ in range(steps) for event in scheduler.step()]
  calls, real = [], programs.decode_step

  def failing(*arguments):
    calls.append(0)
    if len(calls) == 2:
      raise RuntimeError("out of memory")
    return real(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(programs, "decode_step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
      scheduler.step()
  cache.audit()
  later = submit(scheduler, OTHER)
  events += [e for step in steps_until_idle(cache, scheduler) for e in step]
  failed = [n for n, why in endings(events).items() if why is Ending.FAILED]
  assert failed == [4, 5]
  for i, handle in enumerate(handles):
    if handle.number not in failed:
      assert ids(events, handle) == expected_ids(SHORT, 16, seed=i % 2)
  assert ids(events, later) == expected_ids(OTHER, 16)


def test_a_sequence_that_somebody_else_released_is_finished():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  taken, other = submit(scheduler, SHORT), submit(scheduler, OTHER)
  events = [*scheduler.step()]
  cache.release(cache.sequences[:1])
  events += [e for step in steps_until_idle(cache, scheduler) for e in step]
  assert endings(events) == {
    taken.number: Ending.FAILED,
    other.number: Ending.LENGTH,
  }
  assert ids(events, other) == expected_ids(OTHER, 16)


def test_lost_pools_end_who_runs_and_who_is_swapped_out_is_replayed(
  monkeypatch,
):
  cache = new_cache("last", slots=8, pages=9)
  scheduler = new_scheduler(cache)
  first = submit(scheduler, MIDDLE, max_tokens=30)
  second = submit(scheduler, 7, max_tokens=30)
  events = []
  while not scheduler.counts["swapped_out"]:
    events += scheduler.step()

  def losing(*arguments):
    for leaf in jax.tree.leaves(cache.pools):
      leaf.delete()
    raise RuntimeError("the device is gone")

  with monkeypatch.context() as patch:
    patch.setattr(programs, "decode_step", losing)
    with pytest.raises(RuntimeError, match="the device is gone"):
      scheduler.step()
  events += [e for step in steps_until_idle(cache, scheduler) for e in step]
  assert endings(events)[first.number] is Ending.FAILED
  assert ids(events, second) == expected_ids(7, 30)


def test_a_scheduler_goes_on_with_the_weights_that_its_cache_was_given():
  """An answer of two models is nobody's; who had not begun gets a whole one."""
  other = HybridDecoder(small_model().config, rngs=nnx.Rngs(1))
  cache = new_cache("last", slots=8, pages=9)
  cache.replace_weights(other)
  expected = Scheduler(other, cache)
  fresh = submit(expected, SHORT)
  events = [e for step in steps_until_idle(cache, expected) for e in step]
  new_ids = ids(events, fresh)
  cache.replace_weights(small_model())
  scheduler = new_scheduler(cache, swap_capacity=0)
  begun = [submit(scheduler, x, max_tokens=30) for x in (MIDDLE, 7)]
  while not scheduler.counts["dropped"]:
    scheduler.step()
  waiting = submit(scheduler, SHORT)
  cache.replace_weights(other)
  events = [e for step in steps_until_idle(cache, scheduler) for e in step]
  ended = {e.handle: e for e in events if isinstance(e, Finished)}
  for handle in begun:
    assert ended[handle].why == "failed"
    assert "weights of its cache were replaced" in str(ended[handle].error)
  assert ids(events, waiting) == new_ids != expected_ids(SHORT, 16)
  cache.replace_weights(small_model())
  last = submit(scheduler, SHORT)
  events = [e for step in steps_until_idle(cache, scheduler) for e in step]
  assert ids(events, last) == expected_ids(SHORT, 16)


def test_whose_sequence_has_ended_is_over_before_the_next_step():
  """Nothing of it is stored a second time: it owns nothing any more."""
  cache = new_cache("last", slots=8, pages=9)
  scheduler = new_scheduler(cache)
  handles = [submit(scheduler, x, max_tokens=30) for x in (SHORT, OTHER)]
  for _ in range(4):
    scheduler.step()
  cache.replace_weights(small_model())
  for call in (scheduler.cancel, scheduler.fork):
    with pytest.raises(ValueError, match=r"number=0\) is finished"):
      call(handles[0])
    cache.audit()
  (events,) = steps_until_idle(cache, scheduler)
  assert endings(events) == {0: "failed", 1: "failed"}
  assert not cache.store.index.stats.leased_slots


def test_whoever_a_failing_rule_has_ended_computes_nothing_more(monkeypatch):
  """A deadline stores an answer; others begin in the slots of who has ended."""
  cache, real = new_cache(), Lru.add
  scheduler = new_scheduler(cache)
  late = submit(scheduler, MIDDLE, max_tokens=40, deadline=12)
  ended = [submit(scheduler, SHORT, seed=i, max_tokens=40) for i in range(3)]
  for _ in range(12):
    scheduler.step()

  def failing(rule, state):
    if state.node.depth == 5:  # So does a new one, of what is stored.
      raise OSError("the log is full")
    real(rule, state)

  monkeypatch.setattr(Lru, "add", failing)
  fresh = [submit(scheduler, OTHER, seed=i) for i in range(3)]
  events = [e for step in steps_until_idle(cache, scheduler) for e in step]
  ends = {e.handle: e for e in events if isinstance(e, Finished)}
  assert "log is full" in str(ends[late].error)
  for handle in ended:
    assert "rule of eviction of its cache failed" in str(ends[handle].error)
  for seed, handle in enumerate(fresh):
    assert ids(events, handle) == expected_ids(OTHER, 16, seed=seed)


def test_weights_that_are_given_while_others_are_compared_stay(monkeypatch):
  """The comparison put back what it had begun with."""
  cache, real = new_cache(), identity.fingerprint
  other = HybridDecoder(small_model().config, rngs=nnx.Rngs(1))
  thread = threading.Thread(target=cache.replace_weights, args=(other,))

  def meanwhile(leaves):
    if thread.ident is None:
      thread.start()
      thread.join(0.2)
    return real(leaves)

  monkeypatch.setattr(identity, "fingerprint", meanwhile)
  cache.check_model(HybridDecoder(small_model().config, rngs=nnx.Rngs(0)))
  thread.join()
  assert cache.model is other


class AtLine:
  """Raises SIGINT when the n-th line of the library runs."""

  def __init__(self, line):
    self.line, self.lines = line, 0

  def _trace(self, frame, event, argument):
    del argument
    if "sparse_prefix_jax" not in frame.f_code.co_filename:
      return None
    if event == "line":
      self.lines += 1
      if self.lines == self.line:
        signal.raise_signal(signal.SIGINT)
    return self._trace

  def __enter__(self):
    self.before = sys.gettrace()
    sys.settrace(self._trace)
    return self

  def __exit__(self, *_):
    sys.settrace(self.before)


def test_an_interruption_at_any_line_of_a_step_ends_nobody():
  """12 evenly spaced lines; who had begun and who had not goes on."""
  cache = new_cache()
  scheduler = new_scheduler(cache)
  submit(scheduler, SHORT, max_tokens=40)
  # Of the second one more lines are the first of their kind.
  scheduler.step()
  scheduler.step()
  with AtLine(0) as counter:
    scheduler.step()
  interrupted = 0
  for point in range(12):
    if point % 4 == 0:
      submit(scheduler, OTHER, max_tokens=5)
    try:
      with AtLine(1 + point * counter.lines // 12):
        scheduler.step()
    except KeyboardInterrupt:
      interrupted += 1
    cache.audit()
  assert interrupted == 12
  told = serve(cache, scheduler)
  last = [event.id for event in told[0]]
  assert last == expected_ids(SHORT, 40)[-len(last) :]
  assert scheduler.counts["discarded"] == 0


@pytest.mark.parametrize("call", ["enter", "fork"])
def test_a_call_that_is_interrupted_leaves_no_request_behind(monkeypatch, call):
  """Its caller has no handle: nobody could cancel what it had made."""
  cache = new_cache()
  scheduler = new_scheduler(cache)
  first = submit(scheduler, SHORT, max_tokens=8)
  events = [*scheduler.step(), *scheduler.step()]
  real = getattr(Stepper, call)

  def interrupted(*arguments):
    made = real(*arguments)
    signal.raise_signal(signal.SIGINT)
    return made

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(Stepper, call, interrupted)
    if call == "fork":
      scheduler.fork(first)
    else:
      submit(scheduler, OTHER)
  cache.audit()
  assert len(cache.sequences) == 1
  events += [e for step in steps_until_idle(cache, scheduler) for e in step]
  assert {event.handle for event in events} == {first}
  assert ids(events, first) == expected_ids(SHORT, 8)


def test_a_cache_that_others_hold_is_waited_for():
  """A sequence of `prefill` has the pages; nobody fails, nobody runs."""
  cache = new_cache("no_cache", slots=8, pages=6)
  out = prefill(small_model(), cache, [random_tokens(60)])
  scheduler = new_scheduler(cache)
  running = submit(scheduler, SHORT, max_tokens=20)
  for _ in range(15):
    scheduler.step()
  assert scheduler.counts["sat_out_no_room"] > 0
  assert cache.store.running[-1].length == 32
  cache.release(out.sequences)
  steps = steps_until_idle(cache, scheduler)
  assert endings([e for s in steps for e in s]) == {
    running.number: Ending.LENGTH
  }
