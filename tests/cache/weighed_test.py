"""Lives of a store whose states are weighed: all adds up after every verb."""

import contextlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sparse_prefix_jax.cache.index import Budget, CapacityError
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.cache.waves import next_wave
from sparse_prefix_jax.evaluation.store_rules import commit_all, serve
from sparse_prefix_jax.placement import PlacementPolicy, Planner

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK = 4
BUDGETS = (
  Budget(2000, 100, 10, 8, 40),
  Budget(1200, 100, 10),
  Budget(900, 100, 10, 5, 14),
  Budget(900, 100, 0, 6, 200),
  Budget(900, 0, 10, 9, 40),
)


def new_store(budget=BUDGETS[0]):
  policy = PlacementPolicy("adaptive", None, CHUNK)
  planner = Planner(policy, depths=32, serving=True)
  return PrefixStore(budget, planner, chunk=CHUNK)


def ids(size, seed=0):
  return np.random.default_rng(seed).integers(0, 500, size).tolist()


def request(tokens, **fields):
  return Request.of_tokens(np.array(tokens, np.int32), CHUNK, **fields)


def prompts(store):
  """How many prompts the policy has observed."""
  return store.planner.worth._step


class Life:
  """A store and its sequences, driven by numbers."""

  def __init__(self, budget):
    self.store, self.pasts = new_store(budget), [ids(30, s) for s in range(3)]

  def open(self, past, cut, fresh, salt, anchor, captured):
    tokens = [*self.pasts[past][:cut], *ids(fresh, 10 + fresh)]
    named = {p // CHUNK * CHUNK for p in (anchor, anchor + 8)} - {0}
    waiting = [
      request(
        [*tokens, *range(more)],
        anchors=tuple(p for p in sorted(named) if p <= len(tokens)),
        placed=not captured,
        salt=b"ab"[:salt],
      )
      for more in range(1 + past)
    ]
    with contextlib.suppress(CapacityError):
      while waiting:
        wave = next_wave(self.store, waiting)
        opened = self.store.open(wave.requests, wave.shared)
        self.store.audit()
        if captured and cut % 2:
          return  # They stay as they are, to be dropped or computed later.
        for running in opened:
          commit_all(self.store, running)
        waiting = wave.later

  def part(self, one, limit):
    running = self.one(one)
    segment = running and self.store.next_segment(running, limit)
    if segment:
      self.store.commit(running, segment)

  def one(self, number):
    running = self.store.running
    return running[number % len(running)] if running else None

  def decode(self, one, size):
    running = self.one(one)
    if running is None:
      return
    commit_all(self.store, running)
    with contextlib.suppress(CapacityError):
      for token in range(size):
        self.store.advance([running])
        self.store.append(running, token)
        commit_all(self.store, running)

  def fork(self, one):
    if running := self.one(one):
      commit_all(self.store, running)
      with contextlib.suppress(CapacityError):
        self.store.fork(running)

  def close(self, one, keep):
    if running := self.one(one):
      self.store.close(running, None if keep > running.length else keep)

  def drop(self, one):
    if running := self.one(one):
      self.store.drop(running)

  def flush(self):
    self.store.flush()

  def resize(self, slots, pages):
    store = self.store
    if store.index.budget.slots is None:
      return
    try:
      moved = store.begin_resize(slots, pages)
    except CapacityError:
      return
    store.renumber(moved)
    store.end_resize(slots, pages)


whole = st.integers
verbs = st.one_of(
  st.tuples(
    st.just("open"),
    whole(0, 2),
    whole(0, 30),
    whole(1, 9),
    whole(0, 2),
    whole(0, 20),
    st.booleans(),
  ),
  st.tuples(st.just("part"), whole(0, 5), whole(1, 12)),
  st.tuples(st.just("decode"), whole(0, 5), whole(1, 9)),
  st.tuples(st.just("fork"), whole(0, 5)),
  st.tuples(st.just("close"), whole(0, 5), whole(0, 60)),
  st.tuples(st.just("close"), whole(0, 5), st.just(999)),
  st.tuples(st.just("drop"), whole(0, 5)),
  st.tuples(st.just("flush")),
  st.tuples(st.just("resize"), whole(2, 9), whole(4, 40)),
)


@pytest.mark.parametrize("budget", BUDGETS)
@hypothesis.settings(max_examples=40)
@hypothesis.given(schedule=st.lists(verbs, max_size=25))
def test_all_adds_up_after_every_verb(budget, schedule):
  life = Life(budget)
  for verb, *arguments in schedule:
    getattr(life, verb)(*arguments)
    life.store.audit()
  while life.store.running:
    life.drop(0)
  life.store.audit()
  life.flush()
  life.store.audit()
  assert life.store.index.held_bytes == life.store.planner.worth.held_count == 0


def told(store):
  """What is kept, who would go first, and to the bit what it is all worth."""
  states = [(state.number, state.node.depth) for state in store.index.states]
  lost = store.planner.worth.expected_lost()
  awaited = [depth for _, depth in store.index.worth.awaited]
  return states, store.index.evictions, awaited, lost


@pytest.mark.parametrize("budget", BUDGETS)
@hypothesis.settings(max_examples=20)
@hypothesis.given(schedule=st.lists(verbs, max_size=25))
def test_what_stays_weighed_decides_as_what_is_weighed_anew(budget, schedule):
  kept, anew = Life(budget), Life(budget)
  anew.store.planner.worth.weighs = lambda weighed: False
  for verb, *arguments in schedule:
    getattr(kept, verb)(*arguments)
    getattr(anew, verb)(*arguments)
    assert told(kept.store) == told(anew.store)


def test_a_prompt_is_placed_by_what_is_worth_most():
  """Documents that are asked for again push out what is asked for once."""
  store = new_store(Budget(100_000, 100, 10, 6, 400))
  random = np.random.default_rng(0)
  saved = []
  for step in range(120):
    asked = [*ids(40, step % 3), *random.integers(0, 500, 6)]
    saved.append(serve(store, request(asked)).resumed)
    serve(store, request(random.integers(0, 500, 40)))
    store.audit()
  assert np.mean(saved[60:]) == 40


def test_a_wave_is_observed_once_and_before_it_is_placed():
  store, calls = new_store(), []
  worth = store.index.worth
  observe, offer = worth.observe, worth.offer

  def observed(*arguments):
    calls.append("observe")
    return observe(*arguments)

  def offered(*arguments, **named):
    calls.append("offer")
    return offer(*arguments, **named)

  worth.observe, worth.offer = observed, offered
  store.open([request(ids(9, seed)) for seed in range(3)])
  assert calls == ["observe"] * 3 + ["offer"] * 3
  store.audit()


def test_a_refused_wave_is_not_observed_and_evicts_nothing():
  store = new_store(Budget(900, 100, 10, 5, 14))
  serve(store, request(ids(20)))
  before = store.index.stats, prompts(store)
  with pytest.raises(CapacityError, match="running sequences hold"):
    store.open([request(ids(20, seed)) for seed in range(3)])
  with pytest.raises(CapacityError, match="the cache holds"):
    store.open([request(ids(90))])
  assert (store.index.stats, prompts(store)) == before
  store.audit()


@pytest.mark.parametrize("verb", ["reserve", "free", "pin", "use"])
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_failing_open_awaits_nothing(monkeypatch, verb, nth):
  store = new_store()
  serve(store, request(ids(17)))
  held = store.planner.worth.held_count
  calls, working = iter(range(9)), getattr(store.index, verb)

  def failing(*arguments, **named):
    if next(calls) == nth:
      raise MemoryError
    return working(*arguments, **named)

  with monkeypatch.context() as patch:
    patch.setattr(store.index, verb, failing)
    wave = [request([*ids(17), 1]), request(ids(9, 1))]
    try:
      opened = store.open(wave)
    except MemoryError:
      opened = []
  for running in opened:
    store.drop(running)
  store.audit()
  assert store.running == ()
  assert store.planner.worth.held_count <= held
  assert store.index.stats.leased_slots == 0


@pytest.mark.parametrize("verb", ["observe", "offer"])
def test_a_policy_that_fails_leaves_nothing(monkeypatch, verb):
  store = new_store()
  serve(store, request(ids(17)))
  before = store.index.stats

  def failing(*_, **__):
    raise MemoryError

  with monkeypatch.context() as patch:
    patch.setattr(store.index.worth, verb, failing)
    with pytest.raises(MemoryError):
      store.open([request(ids(17, 3)), request(ids(9, 1))])
  assert store.index.stats == before
  store.audit()


def test_a_sequence_that_is_dropped_awaits_nothing():
  store = new_store()
  (running,) = store.open([request(ids(17))])
  assert running.captured == (16,) and store.planner.worth.held_count == 1
  store.audit()
  store.drop(running)
  store.audit()
  assert store.planner.worth.held_count == 0


def test_the_end_of_an_answer_is_kept_and_found():
  store = new_store()
  prompt, answer = ids(17), ids(10, 1)
  closed = serve(store, request(prompt), answer)
  assert closed.entry.states == (4, 6)
  again = serve(store, request([*prompt, *answer, *ids(5, 2)]))
  assert again.resumed == 24
  assert serve(store, request([*prompt, 1])).resumed == 16
  store.audit()


def test_a_second_turn_is_weighed_against_the_first():
  """No probation: the state that is used stays, whatever lies below it."""
  store = new_store(Budget(100_000, 100, 10, 5, 400))
  prompt = ids(17)
  for step in range(30):
    again = serve(store, request(prompt), ids(20, 50 + step))
    store.audit()
  assert again.resumed == 16


def test_anchors_are_candidates_and_positions_given_are_kept():
  store = new_store()
  (running,) = store.open([request(ids(30), anchors=(8, 12))])
  assert running.captured == (8, 12, 28)
  store.drop(running)
  given = request(ids(30), anchors=(8, 12), placed=False)
  (running,) = store.open([given])
  assert running.captured == (8, 12)
  store.drop(running)
  (running,) = store.open([request(ids(16), anchors=(16,))])
  assert running.captured == (8, 12, 16)
  store.drop(running)
  store.audit()


def test_what_a_wave_waits_for_is_captured():
  store, document = new_store(), ids(20)
  batch = [request([*document, *ids(3, s)], index=s) for s in range(1, 4)]
  wave = next_wave(store, batch)
  (running,) = store.open(wave.requests, wave.shared)
  assert 20 in running.captured
  commit_all(store, running)
  store.audit()
  later = store.open(next_wave(store, wave.later).requests)
  assert {one.resumed for one in later} == {20}


def test_tenants_learn_nothing_from_each_other():
  store = new_store()
  serve(store, request(ids(17), salt=b"a"))
  observe, blocks = store.index.worth.observe, request(ids(17)).blocks
  assert [observe(blocks, salt).matched for salt in (b"b", b"a")] == [0, 4]


def test_flush_forgets_states_and_keeps_what_was_learned():
  store = new_store()
  serve(store, request(ids(17)))
  store.flush()
  store.audit()
  assert store.planner.worth.held_count == 0
  assert serve(store, request(ids(17))).resumed == 0
  assert prompts(store) == 2


def test_what_was_observed_is_not_observed_again():
  store = new_store()
  serve(store, request(ids(17)))
  seen = prompts(store), store.planner.observations
  named = request([*ids(17), *range(9)], anchors=(24,), observed=True)
  assert serve(store, named).captured == (24,)
  assert (prompts(store), store.planner.observations) == seen
  store.audit()
  assert serve(store, request([*ids(17), *range(12)])).resumed == 24


def test_a_document_of_a_known_template_is_stored_where_it_will_be_left():
  """Its first prompt matches nothing; another tenant's tells it nothing."""
  store = new_store(Budget(20_000, 100, 10))

  def asked(document, question, salt=b""):
    tokens = [*ids(26, document), 600, 601, *ids(9, question)]
    running = serve(store, request(tokens, salt=salt))
    return 28 in running.asked

  first = [asked(document, 100) for document in (1, 2)]
  assert [asked(document, 101) for document in (1, 2)] == [True, True]
  assert first == [False, False]
  assert asked(3, 102)
  assert not asked(4, 103, salt=b"other")
  store.audit()
