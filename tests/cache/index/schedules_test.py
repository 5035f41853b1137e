"""Random lives of an index, step by step beside the simple one."""

import hypothesis
import hypothesis.strategies as st
import pytest

from sparse_prefix_jax.cache.index import Budget, CapacityError, PrefixIndex
from tests.cache.index.reference import ReferenceIndex, State

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

SLOTS, PAGES = 4, 9


class Life:
  """One index and its reference, given the same requests."""

  def __init__(self, eviction):
    budget = Budget(1 << 30, 100, 10, slots=SLOTS, pages=PAGES)
    self.index = PrefixIndex(budget, eviction)
    self.simple = ReferenceIndex(SLOTS, PAGES, eviction)
    self.open = []

  def request(self, blocks, depths, stay):
    """Match, pin, reserve, grow, remember; perhaps stays pinned."""
    match = self.index.match(blocks)
    resumed = self.simple.resume(blocks, len(blocks))
    assert match.overlap_blocks == self.simple.overlap(blocks)
    assert match.resume_blocks == resumed
    new = sorted({d for d in depths if resumed < d <= len(blocks)})
    pin = self.index.pin(match.node)
    held = blocks[:resumed], resumed > 0
    self.simple.pins.append(held)
    need = len(new), len(blocks) - resumed
    try:
      lease = self.index.reserve(*need)
    except CapacityError:
      assert not self.simple.possible(*need)
      self.index.unpin(pin)
      self.simple.pins.remove(held)
      return
    assert self.simple.reserve(*need)
    if resumed:
      self.index.use(match)
      self.simple.hit(blocks[:resumed])
    slots = dict(zip(new, lease.slots))
    grown = self.index.grow(pin, blocks[resumed:], lease.pages, slots)
    self._grow_simple(blocks, new, need, held)
    self.index.remember(grown.pin, b"")
    self.simple.remember(blocks)
    if stay:
      self.open.append((grown.pin, self.simple.pins[-1]))
    else:
      self._end(grown.pin, self.simple.pins[-1])

  def _grow_simple(self, blocks, new, need, held):
    simple = self.simple
    known = {s.prefix for s in simple.states}
    simple.states += [State(blocks[:d]) for d in new if blocks[:d] not in known]
    simple.leased = [simple.leased[0] - need[0], simple.leased[1] - need[1]]
    simple.pins.remove(held)
    at_end = any(s.prefix == blocks for s in simple.states)
    simple.pins.append((blocks, at_end))

  def _end(self, pin, held):
    self.index.unpin(pin)
    self.simple.pins.remove(held)

  def end_one(self):
    if self.open:
      self._end(*self.open.pop(0))

  def check(self):
    self.index.check()
    assert (self.index.held_slots, self.index.held_pages) == self.simple.used()


blocks = st.lists(st.integers(0, 1), min_size=0, max_size=5).map(tuple)
steps = st.one_of(
  st.tuples(
    st.just("request"),
    blocks,
    st.sets(st.integers(1, 5), max_size=3),
    st.booleans(),
  ),
  st.tuples(st.just("end_one")),
)


@pytest.mark.parametrize("eviction", ["fifo", "lru"])
@hypothesis.settings(max_examples=150)
@hypothesis.given(schedule=st.lists(steps, max_size=30))
def test_a_life_is_that_of_the_simple_index(eviction, schedule):
  life = Life(eviction)
  for verb, *arguments in schedule:
    getattr(life, verb)(*arguments)
    life.check()
  while life.open:
    life.end_one()
    life.check()
