"""A person's hour with one cache: what is right alone is right in sequence.

They ask, let it answer, ask again, regenerate, edit the last message, fork, let
two programs call at once, press Ctrl-C in the middle, flush and restart. There
is room for a few conversations only, so that states are evicted all along.
Whatever happens, every result has the bits of a run without a cache, the audit
passes, and nothing is held that nobody uses.
"""

import concurrent.futures

import numpy as np
import pytest

from sparse_prefix_jax import PrefixCache, decode, prefill
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy
from tests.cache.interruptions_test import AtLine
from tests.models_for_tests import cold_runs

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK, ROUNDS = 16, 12
PLACEMENTS = (
  PlacementPolicy("last", chunk=CHUNK),
  PlacementPolicy("conditional", 1, CHUNK, every=3),
  PlacementPolicy("adaptive", chunk=CHUNK),
)


class Person:
  """One cache, one conversation at a time, and a source of chance."""

  def __init__(self, placement, states=9, **changes):
    self.states, self.placement = states, placement
    self.random = np.random.default_rng(0)
    self.cold = cold_runs(**changes)
    self.model = self.cold.model
    self.document = self.tokens(40)
    self.interrupted, self.lines = 0, 1
    self.restart()

  def restart(self):
    """A new process has the weights, and an empty cache."""
    config = self.model.config
    room = self.states * state_bytes(config) + 40 * page_bytes(config)
    self.cache = PrefixCache(
      self.model, capacity=room, placement=self.placement
    )

  def tokens(self, size):
    return self.random.integers(0, 512, size).astype(np.int32)

  def ask(self, prompt, answer=0):
    """A prompt and its answer, token by token; returns both."""
    out = prefill(self.model, self.cache, [prompt])
    expected = self.cold.prefill(prompt).logits[-1]
    assert differing_bits(out.logits[0], expected) == 0
    said, (handle,) = prompt, out.sequences
    for token in self.tokens(answer):
      said = np.append(said, token)
      out = decode(self.model, self.cache, [handle], [int(token)])
      (handle,) = out.sequences
      expected = self.cold.decode(said, prompt.size)
      assert differing_bits(out.logits[0], expected) == 0
    self.cache.release([handle])
    return said

  def fork(self, prompt):
    """Two answers to one prompt, at the same time."""
    out = prefill(self.model, self.cache, [prompt])
    (handle,) = out.sequences
    twin = self.cache.fork(handle)
    out = decode(self.model, self.cache, [handle, twin], [3, 4])
    for row, token in enumerate((3, 4)):
      said = np.append(prompt, token).astype(np.int32)
      expected = self.cold.decode(said, prompt.size)
      assert differing_bits(out.logits[row], expected) == 0
    self.cache.release(out.sequences)

  def interrupt(self, prompt):
    """Ctrl-C within a prefill, or a bit later; its sequences are gone."""
    line = int(1.5 * self.lines * self.random.random())
    try:
      with AtLine(line) as tracer:
        out = prefill(self.model, self.cache, [prompt])
      self.lines = tracer.lines
      self.cache.release(out.sequences)
    except KeyboardInterrupt:
      self.interrupted += 1

  def check(self):
    """Nothing is held for anybody, and all of it adds up."""
    self.cache.audit()
    assert self.cache.sequences == ()
    held = self.cache.store.index.stats
    assert (held.leased_slots, held.leased_pages, held.pins) == (0, 0, 0)


def live(person):
  """One of the many rounds of an hour."""
  question = np.append(person.document, person.tokens(7))
  said = person.ask(question, answer=6)
  person.check()
  again = person.ask(np.append(said, person.tokens(9)), answer=3)
  person.ask(question, answer=4)  # regenerated
  person.ask(np.append(question[:-1], (question[-1] + 1) % 512))  # edited
  person.check()
  person.interrupt(np.append(again, person.tokens(20)))
  person.check()
  person.fork(np.append(person.document, person.tokens(5)))
  person.check()


def both(person):
  """Two programs ask about one document at once."""
  prompts = [np.append(person.document, person.tokens(n)) for n in (3, 30)]
  for prompt in prompts:  # Cold runs are of one thread.
    person.cold.prefill(prompt)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(person.ask, prompts))
  person.check()


def spend(person):
  """All that a person does in an hour; returns how often a prompt hit."""
  hits = 0
  for number in range(ROUNDS):
    live(person)
    both(person)
    if number % 3 == 2:
      person.document = person.tokens(40)
    if number == 5:
      hits += person.cache.stats().hits
      person.cache.flush()
      person.check()
    if number == 8:
      stats = person.cache.stats()
      assert stats.evicted_states > 0
      hits += stats.hits
      person.restart()
  return hits + person.cache.stats().hits


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: p.name)
def test_an_hour_with_one_cache(placement):
  person = Person(placement)
  assert spend(person) > 3 * ROUNDS
  assert person.interrupted > 0


# Random schedules with such pages are in the usual run.
@pytest.mark.slow
def test_an_hour_with_pages_in_int8():
  """Pages are small: of so many bytes states have less than half."""
  person = Person(PLACEMENTS[-1], states=16, page_dtype="int8")
  assert spend(person) > 3 * ROUNDS
  assert person.interrupted > 0
