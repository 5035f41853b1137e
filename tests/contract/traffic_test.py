"""Any schedule gives the bits of each request alone; what would not is caught.

Many more schedules run in benchmarks/schedules.py.
"""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sparse_prefix_jax.cache import segments
from sparse_prefix_jax.cache.index import PrefixIndex
from sparse_prefix_jax.cache.index.results import Pin
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.contract import ContractError, Traffic, poison
from sparse_prefix_jax.contract.stored import compare_stored
from sparse_prefix_jax.contract.traffic import Answers, drawn_by
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.serving.scheduler import (
  DeviceSampler,
  Scheduler,
  TokenEvent,
)
from sparse_prefix_jax.serving.scheduler.life import Life
from sparse_prefix_jax.serving.scheduler.stepper import Stepper
from tests.models_for_tests import LONGEST, answers, cold_runs, small_model
from tests.serving.scheduler.scenes import new_cache, serve

CHUNK = 16


@hypothesis.settings(max_examples=5)
@hypothesis.given(st.data())
def test_every_request_has_the_bits_of_itself_alone(data):
  traffic = Traffic(
    answers(), lambda low, high: data.draw(st.integers(low, high))
  )
  assert traffic.run() == 0


def test_a_step_reads_the_weights_of_the_vocabulary_once(monkeypatch):
  """However many rows decode, and however few the head of prefill has."""
  cold = cold_runs(decode_rows=6, head_rows=2)
  random = np.random.default_rng(3)
  traffic = Traffic(
    Answers(cold, seed=0, longest=LONGEST),
    lambda low, high: int(random.integers(low, high + 1)),
  )
  called, head, step = [], programs.head, programs.decode_step

  def noted(program, name):
    def run(*arguments):
      called.append(name or arguments[1].shape[0])
      return program(*arguments)

    return run

  monkeypatch.setattr(programs, "head", noted(head, None))
  monkeypatch.setattr(programs, "decode_step", noted(step, "step"))
  assert traffic.run() == 0
  assert {x for x in called if x != "step"} == {2, 6}
  assert called.count(6) <= called.count("step")


@pytest.mark.parametrize(
  ("seed", "kinds"), [(20, ("preempted", "dropped")), (11, ("swapped_out",))]
)
def test_crowded_traffic_swaps_drops_and_preempts(seed, kinds):
  """Streams that are known to be crowded."""
  random = np.random.default_rng(seed)
  traffic = Traffic(
    answers(), lambda low, high: int(random.integers(low, high + 1))
  )
  assert traffic.run() == 0
  assert min(traffic.scheduler.counts[kind] for kind in kinds) > 0


def differing(cache, scheduler, prompts):
  """Bits that differ of the answers to some prompts, and of what is stored."""
  told = serve(cache, scheduler)
  bits = 0
  for number, events in enumerate(told):
    expected = answers().of(prompts[number], ((0, number),), len(events))
    for event, step in zip(events, expected):
      if np.any(event.logits.view(np.uint32) != step.logits.view(np.uint32)):
        bits += 1
  return bits + compare_stored(cache, cold_runs()).bits


def crowded(swap_capacity):
  """Two requests; the second makes room within the chunk its prompt ends in."""
  cache = new_cache("last", slots=8, pages=9)
  scheduler = Scheduler(
    small_model(),
    cache,
    token_budget=64,
    swap_capacity=swap_capacity,
  )
  prompts = [6, 7]
  sizes = [answers().prompts[prompt].size for prompt in prompts]
  assert sizes == [74, 56]  # A sixth page is needed after six steps.
  for seed, prompt in enumerate(prompts):
    scheduler.submit(
      answers().prompts[prompt],
      sampling=drawn_by(seed),
      max_tokens=30,
      keep_logits=True,
    )
  return cache, scheduler, prompts


def short_prompt():
  """The number of one of 20 to 40 tokens, off the lattice."""
  sizes = [prompt.size for prompt in answers().prompts]
  return next(i for i, n in enumerate(sizes) if 20 < n < 40 and n % CHUNK)


@pytest.mark.parametrize("swap_capacity", [None, "1GiB"])
def test_who_makes_room_goes_on_with_the_same_bits(swap_capacity):
  cache, scheduler, prompts = crowded(swap_capacity)
  assert differing(cache, scheduler, prompts) == 0
  kind = "dropped" if swap_capacity is None else "swapped_out"
  assert scheduler.counts[kind] > 0


def test_a_replay_from_within_the_prompt_is_caught(monkeypatch):
  def replay(life, chunk):
    start = life.prompt // chunk * chunk
    ids = np.array(life.ids.ids[:start])
    return Request.of_tokens(ids, chunk, observed=True)

  monkeypatch.setattr(Life, "replay", replay)
  cache, scheduler, prompts = crowded(None)
  assert differing(cache, scheduler, prompts) > 0


def long_prompt():
  """The number of the longest one."""
  return int(np.argmax([prompt.size for prompt in answers().prompts]))


def cut(placement, seed=0):
  """A request that is prefilled chunk by chunk."""
  cache = new_cache(placement)
  scheduler = Scheduler(small_model(), cache, token_budget=CHUNK)
  prompt = long_prompt()
  scheduler.submit(
    answers().prompts[prompt],
    sampling=drawn_by(seed),
    max_tokens=3,
    keep_logits=True,
  )
  return cache, scheduler, [prompt]


def test_a_cut_off_the_lattice_is_caught(monkeypatch):
  real = segments.next_segment

  def shorter(running, chunk, limit=None):
    segment = real(running, chunk, limit)
    if segment is None or segment.stop == running.prompt_length:
      return segment
    stop = segment.stop - 3
    fields = {"tokens": segment.tokens[:-3], "stop": stop}
    fields["writes"] = {stop: running.running_slot}
    return type(segment)(**(vars(segment) | fields))

  monkeypatch.setattr("sparse_prefix_jax.cache.store.next_segment", shorter)
  cache, scheduler, _ = cut("no_cache")
  with pytest.raises(ValueError, match="position must be a multiple of 16"):
    serve(cache, scheduler)
  cache.audit()


def evicted(cache, scheduler, prompts):
  """Bits that differ if every state goes that nobody pins, at every step."""
  logits = []
  while not scheduler.idle:
    for state in list(cache.store.index.states):
      if not state.pins:
        cache.store.index.drop(state)
    poison(cache)
    events = scheduler.step()
    logits += [e.logits for e in events if isinstance(e, TokenEvent)]
  expected = answers().of(prompts[0], ((0, 0),), len(logits))
  pairs = zip(logits, expected)
  return sum(np.any(x != step.logits) for x, step in pairs)


def test_a_state_at_a_cut_is_pinned():
  assert evicted(*cut("block")) == 0


def test_no_pin_at_a_cut_that_is_a_capture_is_caught(monkeypatch):
  real = PrefixIndex._move

  def unpinned(index, pin, end):
    moved = real(index, pin, end)
    if moved.state is None:
      return moved
    moved.state.pins -= 1
    index._ledger.slots.pinned -= moved.state.pins == 0
    index._pins.remove(moved)
    bare = Pin(moved.node, moved.salt, None)
    index._pins.add(bare)
    return bare

  cache, scheduler, prompts = cut("block")
  real_slot = "sparse_prefix_jax.cache.canonical.slot_at"
  monkeypatch.setattr(PrefixIndex, "_move", unpinned)
  monkeypatch.setattr(
    real_slot,
    lambda running, position, segment, chunk: (
      running.pin.node.state.number
      if running.pin.node and running.pin.node.state
      else segment.writes[position]
    ),
  )
  assert evicted(cache, scheduler, prompts) > 0


def stopped_at_the_end_of_a_chunk():
  """A request whose stop token is the last one of its second decoded chunk."""
  prompt = short_prompt()
  size = answers().prompts[prompt].size
  last = (size // CHUNK + 2) * CHUNK - 1 - size  # its index in the answer
  steps = answers().of(prompt, ((0, 0),), last + 1)
  ids = [step.id for step in steps]
  assert ids.index(ids[last]) == last
  cache = new_cache("last")
  scheduler = Scheduler(small_model(), cache)
  scheduler.submit(
    answers().prompts[prompt],
    sampling=drawn_by(0),
    max_tokens=60,
    stop_tokens=[ids[last]],
    keep_logits=True,
  )
  return cache, scheduler, [prompt]


def test_what_was_discarded_is_not_stored_and_the_last_chunk_is():
  cache, scheduler, prompts = stopped_at_the_end_of_a_chunk()
  assert differing(cache, scheduler, prompts) == 0
  assert scheduler.counts["discarded"] == 1
  size = answers().prompts[prompts[0]].size
  depths = [state.node.depth for state in cache.store.index.states]
  assert max(depths) == size // CHUNK + 2


def test_a_canonical_chunk_before_its_last_id_is_judged_is_caught(monkeypatch):
  real = Stepper._take

  def hasty(stepper, life, drawn, *rest):
    one = life.sequence
    if one.unread and one.length % CHUNK == 0:
      one.tokens.append(int(drawn.ids))
      segment = stepper._store.next_segment(one)
      stepper._dispatcher.prefill([segment], [None])
      one.tokens.pop()
    real(stepper, life, drawn, *rest)

  monkeypatch.setattr(Stepper, "_take", hasty)
  cache, scheduler, prompts = stopped_at_the_end_of_a_chunk()
  assert differing(cache, scheduler, prompts) > 0


def test_another_id_is_an_error(monkeypatch):
  """What draws by the number of a call depends on the schedule."""
  calls = iter(range(1, 10_000))
  real = DeviceSampler.sample

  def by_call(sampler, logits, rows):
    moved = rows.position + next(calls)
    return real(sampler, logits, rows._replace(position=moved))

  monkeypatch.setattr(DeviceSampler, "sample", by_call)
  random = np.random.default_rng(0)
  traffic = Traffic(
    answers(), lambda low, high: int(random.integers(low, high + 1))
  )
  with pytest.raises(ContractError, match="was told, not"):
    traffic.run()
