"""What a prompt was given stays: lives of requests, for every placement.

With room for all, a position that the placement kept is never lost, and the
next request resumes at the deepest of them within its overlap.
"""

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import commit_all
from sparse_prefix_jax.placement import PlacementPolicy, Planner

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK = 64
PLACEMENTS = (
  ("last", None),
  ("block", 128),
  ("block", 64),
  ("sqrt", None),
  ("balanced", 4),
  ("dyadic", 64),
  ("optimal", 2),
  ("dp", 2),
  ("conditional", 1),
  ("adaptive", None),
)
every_placement = pytest.mark.parametrize(("name", "budget"), PLACEMENTS)


def new_store(name, budget):
  policy = PlacementPolicy(name, budget, CHUNK, every=4)
  return PrefixStore(
    Budget(1 << 40, 100, 10, 10_000, 100_000),
    Planner(policy, depths=64, serving=True),
    chunk=CHUNK,
  )


def ids(size, seed=0):
  return np.random.default_rng(seed).integers(0, 500, size).tolist()


class Conversations:
  """A store and what every prompt that it served was given."""

  def __init__(self, name, budget):
    self.store = new_store(name, budget)
    self.given = []  # prompt, positions

  def turn(self, prompt, answer=(), *, keep=None, anchors=()):
    """One request from its prompt to its end; it resumes as deep as it may."""
    running = self.begin(prompt, anchors)
    self.decode(running, answer)
    self.store.close(running, keep)
    self.check()
    return running

  def begin(self, prompt, anchors=()):
    """Opens and computes a prompt, and compares where it resumes."""
    request = Request.of_tokens(
      np.array(prompt, np.int32),
      CHUNK,
      anchors=tuple(a // CHUNK * CHUNK for a in anchors if a >= CHUNK),
    )
    expected = self.deepest(prompt)
    (running,) = self.store.open([request])
    assert running.resumed >= expected
    commit_all(self.store, running)
    kept = {*running.kept, *running.captured}
    self.given.append((prompt, {p for p in kept if self.holds(prompt, p)}))
    # What it was to keep is there, but for what it could not capture any more.
    assert all(self.holds(prompt, p) for p in kept if p > running.resumed)
    return running

  def decode(self, running, answer):
    for token in answer:
      self.store.advance([running])
      self.store.append(running, token)
      commit_all(self.store, running)

  def holds(self, prompt, position):
    blocks = Request.of_tokens(np.array(prompt, np.int32), CHUNK).blocks
    depth = position // CHUNK
    return self.store.index.match(blocks[:depth]).resume_blocks == depth

  def deepest(self, prompt):
    """Deepest position kept for any earlier prompt that this one may use."""
    limit = (len(prompt) - 1) // CHUNK * CHUNK
    usable = [
      p
      for earlier, positions in self.given
      for p in positions
      if p <= limit and earlier[:p] == prompt[:p]
    ]
    return max(usable, default=0)

  def check(self):
    """No position that was kept is lost."""
    self.store.audit()
    for prompt, positions in self.given:
      assert all(self.holds(prompt, p) for p in positions)


@every_placement
@pytest.mark.parametrize("length", [330, 384, 400])
def test_regenerate_three_times(name, budget, length):
  life, prompt = Conversations(name, budget), ids(length)
  for i, answer in enumerate((0, 1, 40, 70, 200)):
    running = life.turn(prompt, ids(answer, 10 + i))
    if i and name in ("last", "block", "sqrt"):
      assert running.resumed >= 320 - (64 if budget == 128 else 0)


@every_placement
def test_an_edited_last_message(name, budget):
  life, past = Conversations(name, budget), ids(300)
  life.turn(past + ids(100, 1), ids(90, 2), anchors=[300])
  edited = life.turn(past + ids(110, 3), ids(20, 4), anchors=[300])
  assert edited.resumed >= 256


@every_placement
def test_another_question_after_an_answer(name, budget):
  life, document = Conversations(name, budget), ids(500)
  for i in range(4):
    question = ids(30, 20 + i)
    running = life.turn(document + question, ids(80, 40 + i), anchors=[500])
    assert running.resumed >= (448 if i else 0)


@every_placement
@pytest.mark.parametrize("system", [0, 100])
def test_thinking_stripped_in_each_of_six_turns(name, budget, system):
  """The boundary before the generation prompt is an anchor of every turn."""
  life, past, boundary = Conversations(name, budget), ids(system, 9), 0
  for turn in range(6):
    past = past + ids(75, 100 + turn)
    prompt = past + ids(70, 5)  # a generation prompt across a lattice point
    running = life.turn(
      prompt, ids(90, 200 + turn) + ids(50, 300 + turn), anchors=[len(past)]
    )
    if turn:
      assert running.resumed >= boundary // CHUNK * CHUNK
    boundary = len(past)
    past = past + ids(50, 300 + turn)  # the thinking is not repeated


@every_placement
def test_samples_one_after_another_and_as_forks(name, budget):
  life, prompt = Conversations(name, budget), ids(330)
  for i in range(3):
    life.turn(prompt, ids(40 * i, i))
  running = life.begin(prompt)
  twins = [life.store.fork(running)[0] for _ in range(3)]
  for i, one in enumerate([*twins, running]):
    life.decode(one, ids(70, 50 + i))
  states = running.states
  for one in [*twins, running]:
    assert one.claims.keys() == running.claims.keys()
    life.store.close(one)
    life.check()
    assert len(one.entry.states) >= states
  life.turn([*prompt, 1, 2, 3])


@every_placement
@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129])
def test_the_same_prompt_again(name, budget, length):
  life, prompt = Conversations(name, budget), ids(length)
  life.turn(prompt, ids(10, 1))
  again = life.turn(prompt)
  limit = (length - 1) // CHUNK * CHUNK
  if name == "last":
    assert again.resumed == limit
  if length <= 64:
    assert again.resumed == 0
    expected = "within_chunk" if length < 64 else "last_token"
    assert again.match.reason == expected


@every_placement
def test_128_tokens_and_10_decoded_keep_their_state(name, budget):
  life, prompt = Conversations(name, budget), ids(128)
  life.turn(prompt, ids(10, 1))
  assert life.holds(prompt, 128)
  longer = life.turn(prompt + ids(10, 1) + ids(20, 2))
  assert longer.resumed == 128


@every_placement
def test_a_system_prompt_with_a_changing_end(name, budget):
  life, system = Conversations(name, budget), ids(200)
  for day in range(5):
    prompt = system + ids(20, 70 + day) + ids(60, 5)
    running = life.turn(prompt, ids(30, 80 + day), anchors=[200])
    assert running.resumed >= (192 if day else 0)


def test_keep_drops_the_thinking_and_nothing_else():
  life, prompt = Conversations("last", None), ids(200)
  running = life.turn(prompt, ids(150, 1), keep=200)
  assert not life.holds(prompt + ids(150, 1), 320)
  assert life.store.match(running.request).resume_blocks == 3
  again = life.turn(prompt + ids(30, 2))
  assert (again.resumed, again.match.overlap_tokens) == (192, 200)
