"""Rule `index`: rows of a policy are states, awaited ones, or offers."""

import weakref

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import (
  EVICTIONS,
  Budget,
  PrefixIndex,
  Worth,
  eviction_for,
)
from sparse_prefix_jax.cache.index.eviction.worth import keys_of
from sparse_prefix_jax.cache.index.ledger import Ledger
from sparse_prefix_jax.cache.index.results import Shortage
from sparse_prefix_jax.placement.worth import Adaptive
from tests.cache.index.short_prompts import begin, blocks_of, look_up, store

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

BYTES = Shortage(100, 10)


def new_index(slots=9, pages=99):
  """An index whose rule is `index`, and the policy behind it."""
  policy = Adaptive(block=4)
  budget = Budget(1 << 20, 100, 10, slots=slots, pages=pages)
  return PrefixIndex(budget, Worth(policy)), policy


def asked(index, ids, owner=0, **named):
  """Observes a prompt and offers what it might keep."""
  visit = index.worth.observe(blocks_of(ids)[0], b"")
  index.worth.offer(visit, owner, **named)
  return visit


def held(index):
  return {state.node.depth for state in index.states}


def test_a_state_that_nobody_offered_is_registered_and_held():
  index, policy = new_index()
  store(index, range(20), depths=(2, 5))
  assert held(index) == {2, 5} and policy.held_count == 2
  store(index, [*range(12), 99], depths=(3,))
  assert held(index) == {2, 3, 5}
  index.drop(index.states[0])
  assert len(index.states) == policy.held_count == 2
  index.check()


def test_a_prompt_is_asked_for_by_tenant():
  index, policy = new_index()
  store(index, range(8), depths=(2,))
  blocks = blocks_of(range(8))[0]
  assert index.worth.observe(blocks, b"").resumed == 2
  assert index.worth.observe(blocks, b"other").matched == 0
  store(index, range(8), depths=(2,), salt=b"other")
  assert index.worth.observe(blocks, b"other").resumed == 2
  assert policy.held_count == 2
  assert keys_of([], b"salt").size == 0


@pytest.mark.parametrize("known", [0, 1, 3, 9])
def test_hashes_that_somebody_has_are_not_made_again(known):
  blocks = blocks_of(range(12))[0]
  hashes = [hash(block) for block in [*blocks, *blocks, *blocks]][:known]
  keys = keys_of(blocks, b"salt", hashes)
  np.testing.assert_array_equal(keys, keys_of(blocks, b"salt"))


def test_an_offer_that_is_accepted_is_awaited_until_it_is_captured():
  index, policy = new_index()
  asked(index, range(20), owner=7)
  assert index.worth.offered == 1 and len(index.states) == 0
  index.reserve(2, 5)
  assert index.worth.accept(7) == (5,)
  assert index.worth.offered == 0 and index.worth.awaited == ((7, 5),)
  store(index, range(20), depths=(5,))
  assert index.worth.awaited == () and policy.held_count == 1
  index.check()


def test_what_never_comes_is_given_back():
  index, policy = new_index()
  asked(index, range(20), owner=7)
  asked(index, range(40, 52), owner=8)
  assert index.worth.accept(7) == (5,)
  index.withdraw(7)
  index.withdraw(8)
  assert (policy.held_count, index.worth.offered) == (0, 0)
  index.check()


def test_a_state_captured_by_another_is_not_given_back():
  index, policy = new_index()
  asked(index, range(20), owner=7)
  index.worth.accept(7)
  store(index, range(20), depths=(5,))
  index.withdraw(7)
  assert policy.held_count == 1 and held(index) == {5}
  index.check()


def busy(slots, documents):
  """Documents that are asked for in turn, beside prompts that never return."""
  index, policy = new_index(slots=slots)
  for start in documents:
    store(index, range(start, start + 8), depths=(2,))
  for step in range(100):
    for start in (1000 + 8 * step, *documents):
      asked(index, range(start, start + 8))
      index.withdraw(0)
  return index, policy


def test_an_offer_worth_less_is_turned_down():
  index, _ = busy(3, (0, 100))
  asked(index, range(200, 204), owner=1)
  lease = index.reserve(1, 1)
  assert index.worth.accept(1) == () and len(index.states) == 2
  assert len(lease.slots) == 1 and index.evictions == 0
  index.check()


@pytest.mark.parametrize("pages", [12, 4])
def test_an_offer_comes_back_where_more_went_than_was_missing(pages):
  """A document is worth more, but goes as well, and may leave room for it."""
  budget = Budget(400, slot_bytes=100, page_bytes=10)
  index = PrefixIndex(budget, Worth(Adaptive(block=4)))
  store(index, range(32), depths=(8,))
  for step in range(100):
    for start in (1000 + 64 * step, 0):
      asked(index, range(start, start + 32))
      index.withdraw(0)
  asked(index, range(90000, 90016), owner=1)
  index.reserve(1, pages)  # The document has 180 bytes.
  assert (len(index.states), index.worth.accept(1)) == (1, ())
  asked(index, range(80000, 80016), owner=2)
  index.reserve(1, 0)
  assert len(index.states) == 0
  assert index.worth.accept(2) == ((4,) if pages == 4 else ())
  index.check()


def test_an_offer_of_a_wave_that_failed_does_not_come_back():
  index, _ = busy(3, (0, 100))
  asked(index, range(200, 204), owner=1)
  assert index.worth.victim(Shortage(slot=1, page=0)) is None  # then it failed
  index.withdraw(1)
  index.free(*index.reserve(0, 0))
  assert index.worth.offered == 0
  index.check()


def test_what_another_waits_for_is_turned_down_last():
  index, _ = busy(2, (0,))
  asked(index, range(200, 208), owner=1, wanted=[1])
  index.reserve(1, 2)
  assert index.worth.accept(1) == (1,) and len(index.states) == 0
  asked(index, range(300, 304), owner=2, wanted=[1])
  index.reserve(1, 1)
  assert index.worth.accept(2) == ()
  index.check()


def test_positions_that_are_named_alone_are_offered():
  index, _ = new_index()
  asked(index, range(20), owner=1, anchors=[2, 3], proposes=False)
  assert index.worth.accept(1) == (2, 3)


def test_what_was_pinned_may_go_when_it_is_not_any_more():
  """States stay weighed from one victim to the next, not beyond a pin."""
  index, _ = new_index(slots=3)
  running = begin(index, range(8), depths=(2,))
  store(index, range(60, 64), depths=(1,))
  assert index.worth.victim(BYTES).node.depth == 1
  index.drop(index.worth.victim(BYTES))
  with pytest.raises(StopIteration):
    index.worth.victim(BYTES)
  index.unpin(running.pin)
  assert index.worth.victim(BYTES) is running.pin.state
  index.check()


def test_what_has_weighed_states_goes_when_there_is_room(monkeypatch):
  """It views columns that a growing table replaces, and names states."""
  index, policy = busy(3, (0, 100))
  weighed, weigh = [], policy.weigh

  def noted(**given):
    leaving = weigh(**given)
    weighed.append(weakref.ref(leaving))
    return leaving

  monkeypatch.setattr(policy, "weigh", noted)
  asked(index, range(200, 204), owner=1)
  index.free(*index.reserve(1, 1))
  assert weighed and all(one() is None for one in weighed)


def test_pinned_and_awaited_states_stay():
  index, _ = new_index(slots=3)
  pinned = begin(index, range(8), depths=(2,)).pin.state
  asked(index, range(40, 48), owner=3)
  index.reserve(1, 0)  # Two slots are taken now, and one is awaited.
  assert index.worth.accept(3) == (2,)
  with pytest.raises(StopIteration):
    index.worth.victim(BYTES)
  store(index, range(60, 64), depths=(1,))
  victim = index.worth.victim(BYTES)
  assert victim is not None and victim is not pinned


def test_what_is_short_decides_between_states():
  """A state above another frees no page; the one at the end frees many."""
  index, _ = new_index()
  store(index, range(40), depths=(1, 10))
  above, end = sorted(index.states, key=lambda state: state.node.depth)
  assert index.worth.victim(Shortage(1, 0)) is above
  assert index.worth.victim(Shortage(0, 1)) is end
  index.drop(end)
  assert index.worth.victim(Shortage(0, 1)) is above


def test_a_shortage_is_of_one_kind_or_of_bytes():
  ledger = Ledger(Budget(1000, 100, 10, slots=4, pages=20))
  ledger.lease(3, 18)
  assert ledger.shortage(2, 1) == (1, 0, 1, 0)
  assert ledger.shortage(1, 3) == (0, 10, 4, 100)
  assert ledger.shortage(2, 3) == (100, 10, 1, 0)
  undivided = Ledger(Budget(1000, 100, 10))
  assert undivided.shortage(99, 0) == (100, 10, 89, 0)


@pytest.mark.parametrize("seed", range(20))
def test_a_shortage_is_the_same_until_so_many_slots_are_free(seed):
  random = np.random.default_rng(seed)
  sizes = random.integers(0, 30, 2).tolist()
  limits = random.integers(0, 40, 2).tolist()
  most = [None if random.random() < 0.3 else limit for limit in limits]
  budget = Budget(int(random.integers(900)), *sizes, *most)
  for slots, pages in random.integers(0, 60, (50, 2)).tolist():
    ledger = Ledger(budget)
    if ledger.has_room(slots, pages):
      continue
    short = ledger.shortage(slots, pages)
    assert short.slots > 0
    for fewer in range(min(short.slots, slots)):
      assert not ledger.has_room(slots - fewer, pages)
      again = ledger.shortage(slots - fewer, pages)
      assert again._replace(slots=short.slots) == short


@pytest.mark.parametrize("pages", [30, 99])
@pytest.mark.parametrize("seed", range(4))
def test_offers_turned_down_together_are_those_turned_down_alone(
  seed, pages, monkeypatch
):
  """Branches of one document, with slots or pages or both scarce."""

  def decisions():
    random, taken = np.random.default_rng(seed), []
    index, _ = new_index(slots=6, pages=pages)
    for owner in range(60):
      ids = [*range(4 * int(random.integers(3, 12)))]
      ids += random.integers(1000, 9999, 8).tolist()
      asked(index, ids, owner=owner)
      index.free(*index.reserve(1, int(random.integers(3))))
      kept = index.worth.accept(owner)
      taken.append((kept, {(s.node.depth, s.number) for s in index.states}))
      index.withdraw(owner)
      store(index, ids, depths=kept)
      index.check()
    assert index.evictions
    return taken

  together = decisions()
  shortage = Ledger.shortage

  def alone(ledger, slots, pages):
    return shortage(ledger, slots, pages)._replace(slots=1)

  monkeypatch.setattr(Ledger, "shortage", alone)
  assert decisions() == together


def test_a_hit_and_a_longer_turn_change_nothing():
  index, _ = new_index()
  for start in (0, 40):
    store(index, range(start, start + 8), depths=(2,))
  before = index.states
  index.use(look_up(index, range(9)))
  index.demote(index.states)
  assert index.states == before


@pytest.mark.parametrize("placement", ["last", "conditional"])
def test_the_rule_is_that_of_one_placement(placement):
  assert eviction_for("adaptive") == eviction_for("adaptive", "index")
  assert eviction_for(placement) == "lru"
  assert eviction_for(placement, "fifo") == "fifo"
  with pytest.raises(ValueError, match="eviction index is that of placement"):
    eviction_for(placement, "index")
  with pytest.raises(ValueError, match="adaptive evicts by its index, got"):
    eviction_for("adaptive", "fifo")
  with pytest.raises(
    ValueError, match="must be one of branch_lru, fifo, greedy_dual, index"
  ):
    eviction_for("adaptive", "newest")
  assert "index" in EVICTIONS
