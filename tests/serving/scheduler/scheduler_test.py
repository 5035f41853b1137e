"""The scheduler: order, budgets, waves, ends, refusals.

What fails is in failures_test.py; that bits are those of each request alone is
tests/contract/traffic_test.py.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  CapacityError,
  HybridDecoder,
  prefill,
)
from sparse_prefix_jax.contract import poison
from sparse_prefix_jax.contract.traffic import drawn_by
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.serving.scheduler import (
  Ending,
  QueueFullError,
  RequestHandle,
  Scheduler,
  Started,
)
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
  random_tokens,
  steps_until_idle,
  submit,
)


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
    scheduler.submit(prompt, sampling=drawn_by(i), max_tokens=2)
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
  two = scheduler.fork(one, sampling=drawn_by(1))
  early = scheduler.fork(
    submit(scheduler, OTHER, max_tokens=3), sampling=drawn_by(1)
  )
  events += [e for step in steps_until_idle(cache, scheduler) for e in step]
  assert ids(events, one) == expected_ids(SHORT, 20)
  told = ids(events, two)
  assert len(told) == 14
  # What it has of its source is no part of its prompt.
  (started,) = [e for e in events if isinstance(e, Started) and e.handle == two]
  assert (started.restored, started.computed) == (22, 0)
  seeds = ((0, 0), (6, 1))
  assert told == [step.id for step in answers().of(SHORT, seeds, 20)][6:]
  assert ids(events, early) == expected_ids(OTHER, 3, seed=1)
  assert scheduler.counts["forked"] == 1


REFUSALS = (
  ({"prompt": []}, "prompt is empty"),
  ({"prompt": [512]}, "holds id 512"),
  ({"prompt": [1], "max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
  ({"prompt": [1], "max_tokens": 2.0}, "max_tokens must be an integer"),
  ({"prompt": [1], "max_tokens": 300}, "more than max_length = 256"),
  ({"prompt": [1], "deadline": -1}, "deadline is -1"),
  ({"prompt": [1], "priority": "high"}, "priority must be an integer"),
  ({"prompt": [1], "stop_tokens": [512]}, "stop_tokens holds id 512"),
  ({"prompt": [1], "stop_tokens": 5}, "stop_tokens has shape"),
  ({"prompt": [1], "anchors": [2]}, "anchors holds 2"),
  ({"prompt": [1], "salt": 3}, "salt must be a text or bytes"),
  ({"prompt": [1], "judged": 1}, "judged must be True or False"),
  ({"prompt": [1], "judged": None}, "judged must be True or False"),
  ({"prompt": [1], "max_tokens": np.timedelta64(3, "s")}, "must be an integer"),
  ({"prompt": [1], "sampling": "hot"}, "sampling is 'hot'"),
)


@pytest.mark.parametrize(("fields", "match"), REFUSALS)
@pytest.mark.usefixtures("unchecked_types")
def test_refusals_of_requests_change_nothing(fields, match):
  scheduler = new_scheduler(new_cache())
  with pytest.raises(ValueError, match=match):
    scheduler.submit(**fields)
  assert scheduler.idle


@pytest.mark.usefixtures("unchecked_types")
def test_refusals_of_schedulers_and_handles():
  cache = new_cache()
  for fields, match in (
    ({"token_budget": 15}, "token_budget is 15; it must be at least 16"),
    ({"max_running": 0}, "max_running is 0"),
    ({"max_running": 1 << 40}, "at least 1 and at most 65536"),
    ({"max_waiting": -1}, "max_waiting is -1"),
    ({"sampler": 7}, "sampler is 7; it must be a Sampler"),
    ({"overlap": 1}, "overlap must be True or False"),
    ({"swap_capacity": -1}, "swap_capacity must be .* at least 0"),
  ):
    with pytest.raises(ValueError, match=match):
      new_scheduler(cache, **fields)
  with pytest.raises(ValueError, match="must be a PrefixCache"):
    Scheduler(cache, small_model())
  scheduler = new_scheduler(cache)
  with pytest.raises(ValueError, match="must be a RequestHandle, of"):
    scheduler.cancel(0)
  with pytest.raises(ValueError, match="another scheduler's"):
    scheduler.cancel(RequestHandle(0))
  handle = submit(scheduler, SHORT)
  with pytest.raises(ValueError, match="keep is 23; it must be 0 to the 22"):
    scheduler.cancel(handle, keep=23)
  for call, match in (
    (lambda: scheduler.check_places("2"), "count must be an integer"),
    (lambda: scheduler.most_tokens(1.5), "prompt must be an integer"),
    (lambda: next(new_scheduler(cache).warm_up(5)), "list of ways of sampling"),
    (lambda: next(new_scheduler(cache).warm_up([5])), "sampling is 5"),
  ):
    with pytest.raises(ValueError, match=match):
      call()


def test_what_never_fits_and_what_finds_no_place_is_refused():
  cache = new_cache(slots=2, pages=4)
  scheduler = new_scheduler(cache, max_running=1, max_waiting=0)
  with pytest.raises(CapacityError, match="a sequence of 65 tokens needs 2"):
    submit(scheduler, SHORT, max_tokens=44)
  submit(scheduler, SHORT, max_tokens=43)
  with pytest.raises(
    QueueFullError, match="1 requests run or wait, and 1 more"
  ):
    submit(scheduler, OTHER)
  steps_until_idle(cache, scheduler)
  submit(scheduler, OTHER)


def test_who_finds_a_seat_does_not_wait():
  """Before the first step too, when none of them has begun."""
  scheduler = new_scheduler(new_cache(), max_running=3, max_waiting=1)
  for _ in range(4):
    scheduler.check_places(1)
    submit(scheduler, SHORT, max_tokens=1)
  for _ in range(2):
    with pytest.raises(
      QueueFullError, match="max_running is 3 and max_waiting"
    ):
      submit(scheduler, SHORT)
    scheduler.step()
  while not scheduler.idle:
    scheduler.step()
  scheduler.check_places(4)
  with pytest.raises(
    QueueFullError, match="0 requests run or wait, and 5 more"
  ):
    scheduler.check_places(5)


def test_the_model_is_the_cache_s():
  other = HybridDecoder(small_model().config, rngs=nnx.Rngs(1))
  with pytest.raises(ValueError, match="other weights"):
    Scheduler(other, new_cache())


def test_other_weights_end_all_requests_and_the_scheduler_goes_on():
  """An answer of two models is nobody's; that of a held request stays."""
  model = HybridDecoder(small_model().config, rngs=nnx.Rngs(0))
  cache = new_cache()
  cache.replace_weights(model)
  scheduler = Scheduler(model, cache, max_running=2)
  whole = submit(scheduler, SHORT, max_tokens=1, held=True)
  events = [e for _ in range(3) for e in scheduler.step()]
  begun = submit(scheduler, SHORT, max_tokens=9)
  scheduler.step()
  waiting = submit(scheduler, OTHER)
  weight = model.branches[0].sub.out
  before = weight[...]
  weight[...] = before + 1
  events += scheduler.step()
  assert endings(events) == {
    whole.number: "length",
    begun.number: "failed",
    waiting.number: "failed",
  }
  for event in events[-2:]:
    assert "model has other weights" in str(event.error)
  scheduler.cancel(whole)
  assert cache.sequences == () and scheduler.idle
  with pytest.raises(ValueError, match="other weights"):
    submit(scheduler, SHORT)
  # The same weights in other arrays are the same; and so is what is replaced.
  weight[...] = before + 0
  again = submit(scheduler, SHORT, max_tokens=9)
  events = [e for s in steps_until_idle(cache, scheduler) for e in s]
  assert ids(events, again) == expected_ids(SHORT, 9)
  other = HybridDecoder(small_model().config, rngs=nnx.Rngs(1))
  model.branches[0].sub = other.branches[0].sub
  with pytest.raises(ValueError, match="other weights"):
    submit(scheduler, SHORT)


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


def test_a_guard_of_the_caller_s_own_transfers_is_not_in_the_way():
  """`prefill`, `decode` and all that serves are calls on a cache, too."""
  expected, events = expected_ids(LONG, 12), []
  with jax.transfer_guard("disallow"):
    scheduler = new_scheduler(new_cache())
    handle = submit(scheduler, LONG, max_tokens=12)
    while not scheduler.idle:
      events += scheduler.step()
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
      jnp.zeros(3) + 1
  assert ids(events, handle) == expected
