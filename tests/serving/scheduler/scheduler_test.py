"""The scheduler: order, budgets, waves, ends, refusals, failures.

That bits are those of each request alone is tests/contract/traffic_test.py.
"""

import itertools
import signal
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import CapacityError, HybridDecoder, prefill
from sparse_prefix_jax.cache import canonical
from sparse_prefix_jax.contract import poison
from sparse_prefix_jax.contract.traffic import NoisySampler
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.serving.scheduler import (
  Ending,
  Finished,
  RequestHandle,
  Scheduler,
  Started,
  TokenEvent,
)
from tests.models_for_tests import answers, small_model
from tests.serving.scheduler.scenes import new_cache, serve


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def new_scheduler(cache, **fields):
  fields = {"sampler": NoisySampler(), "token_budget": 64} | fields
  return Scheduler(small_model(), cache, **fields)


def submit(scheduler, prompt, seed=0, **fields):
  """A request with a prompt of `answers`."""
  prompt = answers().prompts[prompt]
  return scheduler.submit(prompt, sampling=seed, **fields)


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


def test_a_prompt_is_cut_by_the_budget_and_no_entry_is_made_per_cut():
  cache = new_cache("no_cache")
  scheduler = new_scheduler(cache, token_budget=40)  # two chunks
  handle = submit(scheduler, LONG, max_tokens=1)
  (started,) = scheduler.step()
  assert started == Started(handle, 0, 100, started.reason)
  computed = []
  for _ in range(3):
    computed.append(cache.store.running[0].computed)
    assert len(cache.store.index) == 0
    poison(cache)
    assert scheduler.step() == ()
  assert computed == [32, 64, 96]
  events = scheduler.step()
  assert ids(events, handle) == expected_ids(LONG, 1)
  assert endings(events) == {0: Ending.LENGTH}
  assert cache.stats().held_bytes == 0


def test_priorities_come_first_then_arrival():
  cache = new_cache()
  scheduler = new_scheduler(cache, max_running=1)
  for prompt, priority in ((SHORT, 0), (OTHER, 0), (MIDDLE, 1)):
    submit(scheduler, prompt, priority=priority, max_tokens=2)
  steps = steps_until_idle(cache, scheduler)
  started = [
    e.handle.number for s in steps for e in s if isinstance(e, Started)
  ]
  assert started == [2, 0, 1]


def test_who_shares_a_prefix_waits_for_it():
  cache = new_cache("last")
  scheduler = new_scheduler(cache, token_budget=32)
  document = random_tokens(80, seed=5)
  for i in range(3):
    prompt = np.append(document, random_tokens(9, seed=10 + i))
    scheduler.submit(prompt, sampling=i, max_tokens=2)
  lone = submit(scheduler, SHORT, max_tokens=2)
  steps = steps_until_idle(cache, scheduler)
  started = [e for s in steps for e in s if isinstance(e, Started)]
  assert [e.handle.number for e in started] == [0, lone.number, 1, 2]
  assert [e.restored for e in started] == [0, 0, 80, 80]
  assert scheduler.counts["waited_for_a_prefix"] > 0


@pytest.mark.parametrize("overlap", [True, False])
def test_only_who_is_judged_sits_out(overlap):
  """Through two lattice points: completed chunks cost no step."""
  cache = new_cache()
  scheduler = new_scheduler(cache, overlap=overlap)
  plain = submit(scheduler, SHORT, max_tokens=30)
  judged = submit(scheduler, OTHER, max_tokens=10, judged=True)
  steps = steps_until_idle(cache, scheduler)
  with_ids = [i for i, s in enumerate(steps) if ids(s, plain)]
  assert with_ids == list(range(with_ids[0], with_ids[0] + 30))
  with_ids = [i for i, s in enumerate(steps) if ids(s, judged)]
  apart = {b - a for a, b in itertools.pairwise(with_ids)}
  assert apart == ({2} if overlap else {1})
  assert scheduler.counts["sat_out_judged"] == (9 if overlap else 0)
  assert scheduler.counts["sat_out_no_room"] == 0


def test_ids_go_from_step_to_step_on_the_device(monkeypatch):
  """A step is dispatched before the ids of the last one are read."""
  order = []
  decode, read = programs.decode_step, jax.device_get

  def dispatched(*arguments):
    order.append("decode")
    return decode(*arguments)

  def fetched(x):
    order.append("read")
    return read(x)

  monkeypatch.setattr(programs, "decode_step", dispatched)
  monkeypatch.setattr(jax, "device_get", fetched)
  cache = new_cache()
  scheduler = new_scheduler(cache)
  submit(scheduler, SHORT, max_tokens=4)
  while not scheduler.idle:
    scheduler.step()
  assert order == ["decode", "read"] * 3 + ["read"]


def test_deadlines_and_cancellations():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  late = submit(scheduler, SHORT, max_tokens=50, deadline=4)
  gone = submit(scheduler, MIDDLE, max_tokens=50)
  waiting = submit(scheduler, OTHER, max_tokens=50, priority=-1)
  steps = [scheduler.step() for _ in range(4)]
  scheduler.cancel(gone, keep=70)
  scheduler.cancel(waiting)
  steps += steps_until_idle(cache, scheduler)
  events = [event for step in steps for event in step]
  assert endings(events) == {
    late.number: Ending.DEADLINE,
    gone.number: Ending.CANCELLED,
    waiting.number: Ending.CANCELLED,
  }
  told = ids(events, late)
  assert told == expected_ids(SHORT, len(told)) and len(told) == 3
  # Of what was cancelled 70 tokens are stored: as far as a state is there.
  depths = {entry.depth for entry in cache.store.index.entries}
  assert 4 in depths and 5 not in depths
  assert cache.store.index.stats.leased_slots == 0
  with pytest.raises(ValueError, match="is finished"):
    scheduler.cancel(gone)


def test_a_fork_goes_on_from_what_was_chosen():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  one = submit(scheduler, SHORT, max_tokens=20)
  events = [event for _ in range(6) for event in scheduler.step()]
  two = scheduler.fork(one, sampling=1)
  early = scheduler.fork(submit(scheduler, OTHER, max_tokens=3), sampling=1)
  events += [e for step in steps_until_idle(cache, scheduler) for e in step]
  assert ids(events, one) == expected_ids(SHORT, 20)
  told = ids(events, two)
  assert len(told) == 14
  seeds = ((0, 0), (6, 1))
  assert told == [step.id for step in answers().of(SHORT, seeds, 20)][6:]
  assert ids(events, early) == expected_ids(OTHER, 3, seed=1)
  assert scheduler.counts["forked"] == 1


REFUSALS = (
  ({"prompt": []}, r"prompts\[0\] is empty"),
  ({"prompt": [512]}, "holds id 512"),
  ({"prompt": [1], "max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
  ({"prompt": [1], "max_tokens": 2.0}, "max_tokens must be an integer"),
  ({"prompt": [1], "max_tokens": 300}, "more than max_length = 256"),
  ({"prompt": [1], "deadline": -1}, "deadline is -1"),
  ({"prompt": [1], "priority": "high"}, "priority must be an integer"),
  ({"prompt": [1], "stop_tokens": [512]}, "stop_tokens holds id 512"),
  ({"prompt": [1], "stop_tokens": 5}, "stop_tokens has shape"),
  ({"prompt": [1], "anchors": [2]}, r"anchors\[0\] holds 2"),
  ({"prompt": [1], "salt": 3}, "salt must be bytes"),
  ({"prompt": [1], "judged": 1}, "judged must be True or False"),
  ({"prompt": [1], "sampling": "hot"}, "sampling is 'hot'"),
)


@pytest.mark.parametrize(("fields", "match"), REFUSALS)
@pytest.mark.usefixtures("unchecked_types")
def test_refusals_of_requests_change_nothing(fields, match):
  scheduler = new_scheduler(new_cache())
  with pytest.raises(ValueError, match=match):
    scheduler.submit(**({"sampling": 0} | fields))
  assert scheduler.idle


@pytest.mark.usefixtures("unchecked_types")
def test_refusals_of_schedulers_and_handles():
  cache = new_cache()
  for fields, match in (
    ({"token_budget": 15}, "token_budget is 15; it must be at least 16"),
    ({"max_running": 0}, "max_running is 0"),
    ({"max_waiting": -1}, "max_waiting is -1"),
    ({"sampler": 7}, "sampler is 7; it must be a Sampler"),
    ({"overlap": 1}, "overlap must be True or False"),
    ({"swap_capacity": -1}, "swap_capacity must be"),
  ):
    with pytest.raises(ValueError, match=match):
      new_scheduler(cache, **fields)
  with pytest.raises(ValueError, match="must be a PrefixCache"):
    Scheduler(cache, small_model())
  scheduler = new_scheduler(cache)
  with pytest.raises(ValueError, match="must be one that submit gave"):
    scheduler.cancel(0)
  with pytest.raises(ValueError, match="another scheduler's"):
    scheduler.cancel(RequestHandle(0))
  handle = submit(scheduler, SHORT)
  with pytest.raises(ValueError, match="keep is 23; it must be 0 to the 22"):
    scheduler.cancel(handle, keep=23)


def test_what_never_fits_and_what_finds_no_place_is_refused():
  cache = new_cache(slots=2, pages=4)
  scheduler = new_scheduler(cache, max_waiting=1)
  with pytest.raises(CapacityError, match="a sequence of 65 tokens needs 2"):
    submit(scheduler, SHORT, max_tokens=44)
  submit(scheduler, SHORT, max_tokens=43)
  with pytest.raises(CapacityError, match="1 requests wait; max_waiting is 1"):
    submit(scheduler, OTHER)
  steps_until_idle(cache, scheduler)


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


def test_the_model_is_the_cache_s():
  other = HybridDecoder(small_model().config, rngs=nnx.Rngs(1))
  with pytest.raises(ValueError, match="other weights"):
    Scheduler(other, new_cache())


def test_what_is_held_stays_until_its_caller_says_what_to_store():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  held = submit(scheduler, LONG, max_tokens=30, held=True)
  other = submit(scheduler, OTHER, max_tokens=4)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  assert endings(events) == {held.number: "length", other.number: "length"}
  assert ids(events, held) == expected_ids(LONG, 30)
  assert len(cache.sequences) == 1
  scheduler.cancel(held, keep=110)
  assert cache.sequences == () and scheduler.step() == ()
  past = np.append(answers().prompts[LONG], ids(events, held)).astype(np.int32)
  report = prefill(small_model(), cache, [past]).reports[0]
  assert (report.overlap, report.resumed) == (110, 96)


def test_a_held_request_ends_when_its_caller_says_so():
  cache = new_cache()
  scheduler = new_scheduler(cache)
  held = submit(scheduler, SHORT, max_tokens=30, held=True)
  other = submit(scheduler, OTHER, max_tokens=2)
  scheduler.step()
  with pytest.raises(ValueError, match="is not held; cancel it"):
    scheduler.end(other)
  scheduler.end(held)
  scheduler.end(held)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  assert endings(events) == {held.number: "stop", other.number: "length"}
  scheduler.cancel(held)
  cache.audit()
