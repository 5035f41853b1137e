"""What is raised inside a rule of eviction leaves a store that adds up.

Every verb happens entirely or not at all, whatever line of a rule, or of what
`adaptive` learns, raises; and the next call works.
"""

import sys

import numpy as np
import pytest

from sparse_prefix_jax.cache.divided_capacity import DividedCapacity
from sparse_prefix_jax.cache.index import EVICTIONS, Budget, Lru
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.share_chooser import ShareChooser
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.cache.verbs import LOST
from sparse_prefix_jax.evaluation.store_rules import commit_all, serve
from sparse_prefix_jax.placement import PlacementPolicy, Planner

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK, POINTS = 4, 30
BUDGET = Budget(1900, 100, 10, 12, 60)
RULES = ("index", "lru", "fifo", "marconi", "greedy_dual", "branch_lru")
PLACES = ("cache/index/eviction", "placement/worth")
ERRORS = (MemoryError("out"), KeyboardInterrupt())


def new_store(eviction, shares=False):
  name = "adaptive" if eviction == "index" else "balanced"
  budget = None if eviction == "index" else 2
  planner = Planner(
    PlacementPolicy(name, budget, CHUNK), depths=32, serving=True
  )
  store = PrefixStore(BUDGET, planner, chunk=CHUNK, eviction=eviction)
  if shares:
    divided = DividedCapacity(1900, 100, 10, longest=16, probed=1)
    store.chooser = ShareChooser(store, divided, eviction)
  return store


def ids(size, seed=0):
  return np.random.default_rng(seed).integers(0, 500, size).astype(np.int32)


def request(*parts):
  return Request.of_tokens(np.concatenate(parts), CHUNK)


class Raising:
  """Raises once, when the n-th line of a rule runs, as `sys.settrace` sees."""

  def __init__(self, line, error=None):
    self.line, self.error = line, error
    self.lines, self.fired = 0, False

  def _trace(self, frame, event, argument):
    del argument
    if not any(place in frame.f_code.co_filename for place in PLACES):
      return None
    if event == "line" and not self.fired:
      self.lines += 1
      if self.error is not None and self.lines == self.line:
        self.fired = True
        raise self.error
    return self._trace

  def __enter__(self):
    self.before = sys.gettrace()
    sys.settrace(self._trace)
    return self

  def __exit__(self, *_):
    sys.settrace(self.before)


def warm(store):
  """Documents and answers, until something has to go."""
  for step in range(14):
    prompt = request(ids(22, step % 3), ids(3, step))
    serve(store, prompt, answer=range(step, step + 5))
  (running,) = store.open([request(ids(22), ids(5, 90))])
  commit_all(store, running)
  return running


def verbs(store):
  """One of each, as calls that return what began, if anything did."""
  state = {}

  def opened():
    wave = [request(ids(22, 1), ids(9, 50)), request(ids(30, 40))]
    state["wave"] = store.open(wave)

  def committed():
    first, second = state["wave"]
    store.catch_up()
    store.commit(first, store.next_segment(first, 8))
    commit_all(store, first)
    commit_all(store, second)

  def forked():
    store.fork(state["wave"][0])

  def decoded():
    for token in range(9):
      store.advance([state["wave"][1]])
      store.append(state["wave"][1], token)
      commit_all(store, state["wave"][1])

  def closed():
    store.close(state["wave"][1])

  def kept():
    store.close(state["wave"][0], 8)

  def resized():
    store.renumber(store.begin_resize(9, 50))
    store.end_resize(12, 60)

  return (
    opened,
    committed,
    forked,
    decoded,
    closed,
    kept,
    resized,
    store.flush,
  )


def check_whole(store, before, verb):
  """The store adds up, and what was under way is there or has ended."""
  store.audit()
  if store.chooser:
    store.chooser._shadow.audit()
  now = {one.number for one in store.running}
  if verb == "opened" or verb == "forked":
    assert now == before or not now
  if verb in ("closed", "kept"):
    assert len(now) == len(before) - 1 or not now
  for running in store.running:
    commit_all(store, running)
  store.audit()
  for running in store.running:
    store.close(running)
  store.flush()
  serve(store, request(ids(27, 7)))
  assert serve(store, request(ids(27, 7))).resumed > 0
  store.audit()
  held = store.index.stats
  assert (held.leased_slots, held.leased_pages, held.pins) == (0, 0, 0)
  store.flush()
  store.audit()
  assert store.index.held_bytes == 0


def lines_of(eviction, shares):
  store = new_store(eviction, shares)
  warm(store)
  with Raising(0) as counter:
    for verb in verbs(store):
      verb()
  return counter.lines


@pytest.mark.parametrize(
  ("eviction", "shares"),
  [*((rule, False) for rule in RULES), ("index", True), ("lru", True)],
)
def test_a_line_that_raises_leaves_a_store_that_adds_up(eviction, shares):
  lines = lines_of(eviction, shares)
  assert lines > 30
  for point in range(min(POINTS, lines)):
    store = new_store(eviction, shares)
    standing = warm(store)
    error = ERRORS[point % 2]
    before, name = set(), ""
    line = 1 + point * lines // min(POINTS, lines)
    with (
      pytest.raises(type(error)) as caught,
      Raising(line, error) as injector,
    ):
      for verb in verbs(store):
        before, name = {one.number for one in store.running}, verb.__name__
        verb()
    assert caught.value is error and injector.fired
    assert standing in store.running
    check_whole(store, before, name)


@pytest.mark.parametrize("first", ["add", "remove", "victim"])
@pytest.mark.parametrize("eviction", ["index", "lru", "marconi"])
def test_where_no_new_rule_can_be_made_the_store_starts_empty(
  eviction, first, monkeypatch
):
  store, rule = new_store(eviction), EVICTIONS[eviction]
  ended = [warm(store), *store.open([request(ids(9, 3))])]

  def fails(*_):
    raise MemoryError("out")

  with monkeypatch.context() as patch:
    patch.setattr(rule, "add", fails)
    patch.setattr(rule, first, fails)
    with pytest.raises(MemoryError, match="out"):
      for step in range(9):
        serve(store, request(ids(30, 60 + step)))
  assert store.running == () and store.index.held_bytes == 0
  (other,) = store.open([request(ids(40, 5))])
  for running in ended:  # Another one has their slots and pages.
    for verb in (store.close, store.retract, store.fork, store.swap_out):
      with pytest.raises(ValueError, match=LOST):
        verb(running)
    with pytest.raises(ValueError, match=LOST):
      store.advance([other, running])
    with pytest.raises(ValueError, match=LOST):
      store.find(running.handle)
  store.audit()
  store.close(other)
  check_whole(store, set(), "")


def test_a_store_that_cannot_even_start_empty_does_so_later(monkeypatch):
  store = new_store("lru")
  handle = warm(store).handle

  def fails(*_):
    raise MemoryError("out")

  with monkeypatch.context() as patch:
    patch.setattr(Lru, "add", fails)
    patch.setattr(Lru, "__init__", fails)
    for step in range(3):
      with pytest.raises(MemoryError, match="out"):
        serve(store, request(ids(30, 60 + step)))
  with pytest.raises(ValueError, match=LOST):
    store.find(handle)
  check_whole(store, set(), "")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["add", "remove", "hit", "demote", "victim"])
def test_a_rule_of_ones_own_that_raises(method, when, monkeypatch):
  class Own(Lru):
    pass

  store = new_store(Own)
  standing, calls = warm(store), []
  before = {one.number for one in store.running}
  works = getattr(Lru, method)

  def fails(rule, *given):
    if calls:
      return works(rule, *given)
    calls.append(1)
    if when == "after":
      works(rule, *given)
    raise MemoryError(method)

  monkeypatch.setattr(Own, method, fails)
  with pytest.raises(MemoryError, match=method):
    for step in range(20):
      serve(store, request(ids(22, step % 5), ids(3, step)), answer=range(5))
  assert store.running == (standing,)
  check_whole(store, before, "")


def test_states_are_kept_where_a_new_rule_takes_over(monkeypatch):
  store = new_store("index")
  warm(store)
  states = {state.node for state in store.index.states}
  worth = store.planner.worth
  with monkeypatch.context() as patch:
    patch.setattr(
      worth._learner, "visit", lambda *_: (_ for _ in ()).throw(MemoryError)
    )
    with pytest.raises(MemoryError):
      store.open([request(ids(30, 60))])
  assert {state.node for state in store.index.states} == states
  assert store.planner.worth is not worth
  assert store.index.worth._policy is store.planner.worth
  store.audit()
