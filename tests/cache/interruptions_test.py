"""Interruptions and failures end their own call's sequences, nothing else.

The injector behaves like a Ctrl-C: it raises the real signal while some line of
the library runs. Afterwards the audit passes, nothing is leaked, the exception
is the one that was raised, and whoever stands by goes on with its bits.
"""

import signal
import sys
import threading

import jax
import numpy as np
import pytest

from sparse_prefix_jax import decode, prefill
from sparse_prefix_jax.cache import prefix_cache
from sparse_prefix_jax.cache.call_lock import CallLock
from sparse_prefix_jax.cache.index.ledger import Ledger
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime import plan, pools, programs
from sparse_prefix_jax.serving import decode as steps
from tests.models_for_tests import cold_runs, small_model

# Hundreds of scenes: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK = 16
POINTS = 60


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def request(tokens):
  return Request.of_tokens(tokens.astype(np.int32), CHUNK)


class Scene:
  """A cache with an entry, a bystander that decodes, and somebody to act."""

  def __init__(self):
    placement = PlacementPolicy("block", budget=CHUNK, chunk=CHUNK)
    self.cache = cold_runs().cache(placement)
    self.entry, self.bystander = random_tokens(50), random_tokens(30, seed=1)
    out = prefill(small_model(), self.cache, [self.entry])
    self.cache.release(out.sequences)
    out = prefill(small_model(), self.cache, [self.bystander])
    (self.standing,) = out.sequences
    out = prefill(small_model(), self.cache, [random_tokens(31, seed=2)])
    (self.acting,) = out.sequences

  def act(self, verb):
    """One call, of the kind that is interrupted."""
    model, cache = small_model(), self.cache
    prompt = np.append(self.entry, random_tokens(70, seed=3))
    if verb == "prefill":
      prefill(model, cache, [prompt, np.append(prompt, 5)])
    elif verb == "decode":  # completes a chunk
      decode(model, cache, [self.acting], [7])
    elif verb == "fork":
      cache.fork(self.acting)
    elif verb == "release":
      cache.release([self.acting])
    else:
      cache.flush()

  def check(self, verb, finished):
    """Whatever happened, the cache is whole and the bystander goes on."""
    cache, store = self.cache, self.cache.store
    cache.audit()
    running = {one.number for one in store.running}
    assert self.standing.number in running
    if verb in ("prefill", "fork"):
      assert self.acting.number in running
    if not finished and verb in ("prefill", "fork"):
      assert len(running) == 2
    if not finished and verb in ("decode", "release"):
      # It has ended, or the call had not begun to change it.
      gone = running == {self.standing.number}
      assert gone or store.find(self.acting).length == 31
    if finished and verb == "release":
      assert running == {self.standing.number}
    if verb != "flush":
      match = store.match(request(np.append(self.entry, 1)))
      assert match.resume_blocks == 3
    out = decode(small_model(), cache, [self.standing], [9])
    expected = cold_runs().decode(
      np.append(self.bystander, 9).astype(np.int32), 30
    )
    assert differing_bits(out.logits[0], expected) == 0
    rest = [one.handle for one in store.running]
    cache.release(rest)
    cache.audit()
    held = store.index.stats
    assert (held.leased_slots, held.leased_pages, held.pins) == (0, 0, 0)
    prompt = np.append(self.entry, 3)
    out = prefill(small_model(), cache, [prompt])
    expected = cold_runs().prefill(prompt.astype(np.int32)).logits[-1]
    assert differing_bits(out.logits[0], expected) == 0


class AtLine:
  """Raises SIGINT when the n-th line of the library runs, as a tracer sees."""

  def __init__(self, line):
    self.line, self.lines, self.fired = line, 0, False

  def _trace(self, frame, event, argument):
    del argument
    if "sparse_prefix_jax" not in frame.f_code.co_filename:
      return None
    if event == "line":
      self.lines += 1
      if self.lines == self.line:
        self.fired = True
        signal.raise_signal(signal.SIGINT)
    return self._trace

  def __enter__(self):
    self.before = sys.gettrace()
    sys.settrace(self._trace)
    return self

  def __exit__(self, *_):
    sys.settrace(self.before)


VERBS = ("prefill", "decode", "fork", "release", "flush")


@pytest.mark.parametrize("verb", VERBS)
def test_an_interruption_at_any_line_ends_its_own_call(verb):
  """60 evenly spaced lines, one call each."""
  Scene().act(verb)  # Tracing runs lines that a second call does not.
  scene = Scene()
  with AtLine(0) as counter:
    scene.act(verb)
  interrupted = 0
  for point in range(POINTS):
    scene = Scene()
    try:
      with AtLine(1 + point * counter.lines // POINTS) as injector:
        scene.act(verb)
      finished = True
    except KeyboardInterrupt:
      finished, interrupted = False, interrupted + 1
    assert injector.fired
    scene.check(verb, finished)
  assert interrupted == POINTS


@pytest.mark.parametrize("verb", ["prefill", "decode", "fork"])
def test_a_call_interrupts_nothing_of_jax(monkeypatch, verb):
  """JAX runs nothing any more if it is interrupted as it puts back a trace."""
  scene, went_on, looked_at = Scene(), [], jax.lax.stop_gradient

  def pressed(array):
    signal.raise_signal(signal.SIGINT)
    went_on.append(verb)
    return looked_at(array)

  with monkeypatch.context() as patch:
    patch.setattr(jax.lax, "stop_gradient", pressed)
    with pytest.raises(KeyboardInterrupt):
      scene.act(verb)
  assert went_on == [verb]
  scene.check(verb, False)


class Failing:
  """Fails at the n-th call of a function of a module or class."""

  def __init__(self, owner, name, number, error, *, after=False, lose=False):
    self.owner, self.name, self.number = owner, name, number
    self.error, self.after, self.lose = error, after, lose
    self.original, self.calls = getattr(owner, name), 0

  def __call__(self, *arguments, **named):
    self.calls += 1
    if self.calls - 1 != self.number:
      return self.original(*arguments, **named)
    if self.lose:
      for leaf in jax.tree.leaves(arguments):
        if isinstance(leaf, jax.Array) and leaf.ndim >= 3:
          leaf.delete()
    raise self.error


def failures(verb):
  """Every place at which a call of this kind may fail, with its calls."""
  scene, counters = Scene(), []
  with pytest.MonkeyPatch.context() as patch:
    for owner, name in PLACES:
      counter = Failing(owner, name, -1, None)
      counters.append(counter)
      patch.setattr(owner, name, bound(counter))
    scene.act(verb)
  return [
    (counter.owner, counter.name, number)
    for counter in counters
    for number in range(counter.calls)
  ]


def bound(failing):
  """A plain function, so that it binds as a method where it stands in one."""
  return lambda *arguments, **named: failing(*arguments, **named)


PLACES = (
  (Ledger, "lease"),
  (plan, "page_table"),
  (steps, "page_table"),
  (programs, "prefill_group"),
  (programs, "head"),
  (programs, "gather_rows"),
  (programs, "decode_step"),
  (prefix_cache, "copy_sequence"),
)
ERRORS = (MemoryError("out"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"))


@pytest.mark.parametrize("error", ERRORS, ids=["memory", "device"])
@pytest.mark.parametrize("verb", ["prefill", "decode", "fork"])
def test_a_failure_anywhere_ends_its_own_call(verb, error):
  places = failures(verb)
  assert len(places) >= (3 if verb == "fork" else 5) - (verb == "fork")
  for owner, name, number in places:
    scene = Scene()
    with pytest.MonkeyPatch.context() as patch:
      failing = Failing(owner, name, number, error)
      patch.setattr(owner, name, bound(failing))
      with pytest.raises(type(error)) as caught:
        scene.act(verb)
    assert caught.value is error
    changed = name != "lease"  # before anything of decode has changed
    scene.check(verb if changed or verb != "decode" else "flush", False)


TAKING = {
  "prefill": (programs, "prefill_group"),
  "decode": (programs, "decode_step"),
  "fork": (prefix_cache, "copy_sequence"),
}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("verb", TAKING)
def test_a_program_that_took_the_pools_empties_the_cache(verb, again):
  """All handles say so, and the next call works, once memory is there."""
  scene, error = Scene(), jax.errors.JaxRuntimeError("INTERNAL")
  cache, handles = scene.cache, scene.cache.sequences
  with pytest.MonkeyPatch.context() as patch:
    owner, name = TAKING[verb]
    failing = Failing(owner, name, 0, error, lose=True)
    patch.setattr(owner, name, bound(failing))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
      scene.act(verb)
  cache.audit()
  assert cache.sequences == () and cache.stats().held_bytes == 0
  for handle in handles:
    with pytest.raises(ValueError, match="has ended: a program failed"):
      cache.release([handle])
  if again:  # no memory for new pools at first
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(
        prefix_cache, "allocate", Failing(pools, "allocate", 0, MemoryError())
      )
      with pytest.raises(MemoryError):
        prefill(small_model(), cache, [scene.entry])
    cache.audit()
  out = prefill(small_model(), cache, [scene.entry])
  expected = cold_runs().prefill(scene.entry).logits[-1]
  assert differing_bits(out.logits[0], expected) == 0


def test_a_program_that_fails_late_counts_as_having_taken_the_pools():
  """What it returned does not say that it is deleted: reading it fails."""

  class Poisoned:
    def is_deleted(self):
      return False

    def block_until_ready(self):
      raise jax.errors.JaxRuntimeError("INTERNAL: failed long ago")

  layer, *others = Scene().cache.pools
  assert not pools.are_lost((layer, *others))
  poisoned = jax.tree.map(lambda leaf: Poisoned(), layer)
  assert pools.are_lost((poisoned, *others))


def test_sigints_in_a_row_leave_a_working_cache():
  """30 real signals from a timer, wherever a prefill happens to be."""
  scene, interrupted = Scene(), 0
  prompt = random_tokens(140, seed=4)
  for attempt in range(30):
    delay = 0.0005 + 0.0007 * (attempt % 10)
    signal.setitimer(signal.ITIMER_REAL, delay)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
      while True:
        out = prefill(small_model(), scene.cache, [prompt])
        scene.cache.release(out.sequences, keep=0)
    except KeyboardInterrupt:
      interrupted += 1
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
      signal.signal(signal.SIGALRM, previous)
    scene.cache.audit()
  assert interrupted == 30
  leaked = {one.number for one in scene.cache.store.running}
  assert leaked == {scene.standing.number, scene.acting.number}
  scene.check("prefill", False)


def test_waiting_for_the_lock_can_be_interrupted():
  lock, entered, leave = CallLock(), threading.Event(), threading.Event()

  def hold():
    with lock.held():
      entered.set()
      leave.wait(30)

  thread = threading.Thread(target=hold)
  thread.start()
  entered.wait(30)
  main = threading.main_thread().ident
  timer = threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT])
  timer.start()
  try:
    with pytest.raises(KeyboardInterrupt), lock.held():
      pass
  finally:
    leave.set()
    thread.join()
  with lock.held():
    pass
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_are_put_back_and_run_once_each():
  calls, lock = [], CallLock()
  previous = signal.signal(signal.SIGUSR1, lambda *_: calls.append("usr1"))
  try:
    with lock.held(), lock.held():
      signal.raise_signal(signal.SIGUSR1)
      signal.raise_signal(signal.SIGUSR1)
      assert calls == []
      lock.deliver()
      assert calls == ["usr1"]
      signal.raise_signal(signal.SIGUSR1)
    assert calls == ["usr1"] * 2
    signal.raise_signal(signal.SIGUSR1)
    assert calls == ["usr1"] * 3
  finally:
    signal.signal(signal.SIGUSR1, previous)
