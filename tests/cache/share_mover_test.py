"""Another share for states: same bits, same entries, and failures survived."""

import gc
import threading

import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, decode, prefill
from sparse_prefix_jax.cache import share_chooser, share_mover
from sparse_prefix_jax.contract import differing_bits, poison
from sparse_prefix_jax.contract.traffic import drawn_by
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime import programs, resize
from sparse_prefix_jax.serving.scheduler import Scheduler, TokenEvent
from tests.models_for_tests import (
  answers,
  cold_runs,
  small_config,
  small_model,
)

CHUNK = 16


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def lived_in(placement="block"):
  """Entries and a running sequence in the middle of a chunk."""
  budget = CHUNK if placement == "block" else None
  policy = PlacementPolicy(placement, budget, CHUNK)
  cache = cold_runs().cache(policy)
  for seed in range(3):
    out = prefill(small_model(), cache, [random_tokens(70, seed)])
    cache.release(out.sequences)
  (running,) = prefill(small_model(), cache, [random_tokens(40, 9)]).sequences
  for token in (1, 2, 3):
    out = decode(small_model(), cache, [running], [token])
    (running,) = out.sequences
  return cache, running


def check(cache, running, entries=3):
  """Entries are there with their bits, and the running one goes on."""
  cache.audit()
  poison(cache)
  tokens = np.append(random_tokens(40, 9), [1, 2, 3, 4]).astype(np.int32)
  out = decode(small_model(), cache, [running], [4])
  assert differing_bits(out.logits[0], cold_runs().decode(tokens, 40)) == 0
  cache.release(out.sequences)
  for seed in range(entries):
    prompt = np.append(random_tokens(70, seed), 5).astype(np.int32)
    out = prefill(small_model(), cache, [prompt])
    assert out.reports[0].resumed == 64
    expected = cold_runs().prefill(prompt).logits[-1]
    assert differing_bits(out.logits[0], expected) == 0
    cache.release(out.sequences)
  cache.audit()


def due(cache, share):
  cache.store.chooser.due = cache.store.chooser.chosen = share


def sizes_of(cache):
  budget = cache.store.index.budget
  leaves = {leaf.shape[0] for leaf in jax.tree.leaves(cache.pools)}
  return {budget.slots, budget.pages}, leaves


def test_programs_are_compiled_before_they_are_needed():
  """After a move no program is compiled in a call.

  The first test: others move to the same shares, whose programs stay.
  """
  cache, running = lived_in()
  due(cache, 0.3)
  cache.move_if_due()
  compiled = (programs.prefill_group, programs.decode_step)
  before = [program._cache_size() for program in compiled]
  check(cache, running)
  assert [program._cache_size() for program in compiled] == before


def test_what_a_probe_of_today_runs_is_compiled_ahead_too(monkeypatch):
  """No request may have needed it, and the call that moves would compile it."""
  cache, _ = lived_in()
  compiled = []

  def noted(_, shapes):
    compiled.append({leaf.shape[0] for leaf in jax.tree.leaves(shapes)})

  monkeypatch.setattr(share_mover, "compile_ahead", noted)
  divided = cache.store.chooser.divided
  cache.store.chooser.chosen = 0.3
  cache.move_if_due()
  cache._mover._compiled[0.3].result()
  assert compiled == [{*divided.split(share)} for share in (0.4, 0.3)]


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_move_keeps_bits_and_entries(share):
  cache, running = lived_in()
  before = cache.store.stats()
  due(cache, share)
  cache.move_if_due()
  chooser = cache.store.chooser
  assert (chooser.share, chooser.moves) == (share, 1)
  slots, pages = chooser.divided.split(share)
  assert sizes_of(cache) == ({slots, pages}, {slots, pages})
  after = cache.store.stats()
  assert after.stored_states == before.stored_states
  assert after.held_bytes == before.held_bytes
  check(cache, running)


def test_a_move_between_the_steps_of_a_scheduler():
  """One prompt is cut, one request decodes, and one waits in the host."""
  policy = PlacementPolicy("last", chunk=CHUNK)
  cache = cold_runs().cache(policy)
  scheduler = Scheduler(small_model(), cache, token_budget=2 * CHUNK)
  prompts = (2, 1, 3)  # of 22, 16 and 100 tokens
  for prompt in prompts:
    scheduler.submit(
      answers().prompts[prompt], sampling=drawn_by(0), max_tokens=12
    )
  events = [event for _ in range(4) for event in scheduler.step()]
  stepper = scheduler._stepper
  stepper._read(0)
  stepper.line.set_aside(stepper.line.running[1])
  assert cache.store.running[-1].computed < 100
  due(cache, 0.3)
  while not scheduler.idle:
    poison(cache)
    events += scheduler.step()
    cache.audit()
  assert cache.store.chooser.moves == 1
  told = [e for e in events if isinstance(e, TokenEvent)]
  for number, prompt in enumerate(prompts):
    expected = answers().of(prompt, ((0, 0),), 12)
    ids = [event.id for event in told if event.handle.number == number]
    assert ids == [token.id for token in expected]


def test_there_and_back_again():
  cache, running = lived_in()
  first = cache.store.chooser.share
  for share in (0.3, 0.5, first):
    due(cache, share)
    cache.move_if_due()
    cache.audit()
    assert cache.store.chooser.share == share
  assert cache.store.chooser.moves == 3
  check(cache, running, entries=0)


def test_a_smaller_share_evicts_what_it_has_no_room_for():
  cache, running = lived_in()
  states = cache.store.stats().stored_states
  due(cache, 0.08)
  cache.move_if_due()
  stats = cache.store.stats()
  assert 0 < stats.stored_states < states and stats.evicted_states > 0
  check(cache, running, entries=0)


def test_running_sequences_that_hold_too_much_put_a_move_off(monkeypatch):
  cache, _ = lived_in()
  prompts = [random_tokens(20, 20 + i) for i in range(8)]
  sequences = prefill(small_model(), cache, prompts).sequences
  share, probes = cache.store.chooser.share, []
  probe = share_mover.probe
  monkeypatch.setattr(
    share_mover, "probe", lambda *x: (probes.append(1), probe(*x))[1]
  )
  due(cache, 0.08)
  cache.move_if_due()
  assert cache.store.chooser.share == share
  assert not probes  # Or every call would run every program.
  cache.audit()
  cache.release(sequences)
  cache.move_if_due()
  assert cache.store.chooser.share == 0.08
  cache.audit()


def test_a_request_that_was_accepted_puts_a_move_off(monkeypatch):
  """Its longest answer would not fit any more, and it would fail half told."""
  cache, _ = lived_in()
  scheduler = Scheduler(small_model(), cache, token_budget=2 * CHUNK)
  handle = scheduler.submit(random_tokens(20), max_tokens=237)
  line = scheduler._stepper.line
  assert line.most_pages() == 16 and line in cache.promises
  divided = cache.store.chooser.divided
  monkeypatch.setattr(type(divided), "split", lambda *_: (60, 15))
  due(cache, 0.5)
  scheduler.step()
  assert cache.store.chooser.moves == 0
  scheduler.cancel(handle)
  monkeypatch.undo()
  cache.move_if_due()
  assert (line.most_pages(), cache.store.chooser.moves) == (0, 1)
  del scheduler, line
  gc.collect()
  assert not cache.promises


@pytest.mark.parametrize("error", [MemoryError, jax.errors.JaxRuntimeError])
@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("place", range(5))
def test_a_failure_at_any_layer_leaves_a_working_cache(place, share, error):
  """Of the copies and of the layers, the n-th one fails.

  Many numbers are taken, most of them free again: what stays is renumbered.
  """
  cache, running = lived_in()
  prompts = [random_tokens(16, 50 + seed) for seed in range(12)]
  sequences = prefill(small_model(), cache, prompts).sequences
  cache.release(sequences[:-1], keep=0)
  before, calls = cache.store.index.budget, []

  def failing(function):
    def call(*arguments):
      iterator = function(*arguments)
      while True:
        calls.append(function)
        if len(calls) == place + 1:
          raise error("no memory")
        try:
          yield next(iterator)
        except StopIteration:
          return

    return call

  with pytest.MonkeyPatch.context() as patch:
    for name in ("moved_pools", "resized_pools"):
      patch.setattr(share_mover, name, failing(getattr(resize, name)))
    due(cache, share)
    cache.move_if_due()
  chooser = cache.store.chooser
  if len(calls) > place:
    assert chooser.moves == 0 and chooser.share == chooser.due
    assert cache.store.index.budget == before
    expected = {before.slots, before.pages}
    assert sizes_of(cache) == (expected, expected)
  cache.release(sequences[-1:])
  check(cache, running, entries=0)


def test_a_failing_probe_moves_back():
  cache, running = lived_in()
  before, calls = cache.store.index.budget, []

  def failing(*arguments):
    calls.append(1)
    if len(calls) == 2:
      raise MemoryError
    return probe(*arguments)

  probe = share_mover.probe
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(share_mover, "probe", failing)
    due(cache, 0.5)
    cache.move_if_due()
  assert cache.store.index.budget == before
  assert cache.store.chooser.share == cache.store.chooser.due == 0.4
  check(cache, running)


@pytest.mark.parametrize("error", [ValueError, MemoryError])
def test_what_does_not_compile_is_left_for_good(error):
  cache, running = lived_in()

  def failing(*_):
    raise error("no")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(share_mover, "compile_ahead", failing)
    due(cache, 0.5)
    cache.move_if_due()
  assert cache.store.chooser.due == cache.store.chooser.share == 0.4
  cache.move_if_due()
  check(cache, running)


def test_who_waits_for_a_compilation_locks_nobody_out():
  """The call that would move waits for it, and no other call does."""
  cache, running = lived_in()
  begun, others_were_served = threading.Event(), threading.Event()
  in_time = []

  def slow(*_):
    begun.set()
    in_time.append(others_were_served.wait(10))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(share_mover, "compile_ahead", slow)
    due(cache, 0.5)
    prompt = random_tokens(70, 0)
    call = threading.Thread(
      target=prefill, args=(small_model(), cache, [prompt])
    )
    call.start()
    assert begun.wait(10)
    check(cache, running, entries=0)
    assert cache.store.chooser.moves == 0
    others_were_served.set()
    call.join()
  assert all(in_time)
  assert (cache.store.chooser.share, len(cache.sequences)) == (0.5, 1)
  cache.audit()


def test_moves_go_on_after_other_weights():
  cache, _ = lived_in()
  due(cache, 0.5)
  cache.move_if_due()
  other = HybridDecoder(small_config(), rngs=nnx.Rngs(1))
  cache.replace_weights(other)
  due(cache, 0.3)
  cache.move_if_due()
  assert (cache.store.chooser.share, cache.store.chooser.moves) == (0.3, 2)
  cache.audit()


def test_a_share_of_other_bits_is_left_for_good():
  cache, running = lived_in()
  first, bits = cache.store.chooser.share, []

  def other_bits(*arguments):
    bits.append(1)
    for pools, digest in probe(*arguments):
      yield pools, digest + str(len(bits))

  probe = share_mover.probe
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(share_mover, "probe", other_bits)
    due(cache, 0.5)
    cache.move_if_due()
  chooser = cache.store.chooser
  assert chooser.due == chooser.chosen == chooser.share
  assert 0.5 not in chooser._usable
  slots, pages = chooser.divided.split(first)
  assert sizes_of(cache) == ({slots, pages}, {slots, pages})
  assert chooser.share == first
  check(cache, running)


def test_shares_follow_what_is_asked():
  """Many short prompts that share nothing want states, not pages."""
  cache, moves = lived_in("last")[0], []
  chooser = cache.store.chooser
  for seed in range(2 * share_chooser.PERIOD):
    out = prefill(small_model(), cache, [random_tokens(33, 100 + seed)])
    cache.release(out.sequences)
    moves.append(chooser.share)
  assert moves[0] == 0.4 and moves[-1] == 0.5 and chooser.moves == 1
  cache.audit()
