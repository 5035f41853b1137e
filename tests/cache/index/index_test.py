"""What the index holds, for whom, and what goes when."""

import pytest

from sparse_prefix_jax.cache.index import Budget, CapacityError, PrefixIndex
from tests.cache.index.short_prompts import (
  ROOMY,
  begin,
  blocks_of,
  look_up,
  store,
)


def small(slots=2, pages=4, eviction="lru", **limits):
  budget = Budget(
    100 * slots + 10 * pages, 100, 10, slots=slots, pages=pages, **limits
  )
  return PrefixIndex(budget, eviction)


def test_pages_live_as_long_as_a_state_needs_them():
  index = PrefixIndex(ROOMY)
  store(index, range(17), depths=(2, 3))
  assert (index.held_slots, index.held_pages) == (2, 3)
  index.drop(look_up(index, range(17)).node.state)
  assert (index.held_slots, index.held_pages) == (1, 2)
  index.drop(look_up(index, range(17)).node.state)
  assert (index.held_slots, index.held_pages) == (0, 0)
  assert look_up(index, range(17)).overlap_tokens == 17
  index.check()


def test_prompts_share_states_and_pages():
  index = PrefixIndex(ROOMY)
  first = store(index, range(12), depths=(2,))
  second = store(index, [*range(8), 9, 9, 9, 9], depths=(2, 3))
  assert second.pages[:2] == first.pages[:2]
  assert second.slots[2] == first.slots[2]
  assert (index.held_slots, index.held_pages) == (2, 3)


def test_a_node_without_a_page_gets_one_again():
  index = PrefixIndex(ROOMY)
  store(index, range(12))
  before = index.stats.remembered_bytes
  assert index.held_pages == 0
  store(index, range(12), depths=(3,))
  assert index.held_pages == 3 and index.stats.remembered_bytes < before
  assert look_up(index, range(12)).pages == (0, 1, 2)


def test_what_is_there_already_stays_and_the_duplicate_is_freed():
  index = PrefixIndex(ROOMY)
  blocks, _ = blocks_of(range(8))
  one, two = (index.pin(None) for _ in range(2))
  leases = [index.reserve(1, 2) for _ in range(2)]
  grown = [
    index.grow(pin, blocks, lease.pages, {2: lease.slots[0]})
    for pin, lease in zip((one, two), leases)
  ]
  assert grown[0].pages == grown[1].pages == leases[0].pages
  assert grown[0].slots == grown[1].slots == {2: leases[0].slots[0]}
  assert (index.held_slots, index.held_pages) == (1, 2)
  assert index.stats.leased_pages == index.stats.leased_slots == 0
  index.check()


def test_a_pin_keeps_a_state_and_a_path_from_eviction():
  index = small(slots=2, pages=6)
  grown = begin(index, range(8), depths=(2,))
  store(index, range(100, 108), depths=(2,))
  index.reserve(1, 4)  # the other one goes
  assert look_up(index, range(8)).resume_blocks == 2
  with pytest.raises(CapacityError, match="running sequences hold"):
    index.reserve(1, 0)
  index.unpin(grown.pin)
  index.reserve(1, 0)
  assert look_up(index, range(8)).resume_blocks == 0
  index.check()


def test_a_pin_is_given_back_once():
  index = PrefixIndex(ROOMY)
  pin = begin(index, range(8)).pin
  index.unpin(pin)
  with pytest.raises(ValueError, match="the pin at depth 2 is not open"):
    index.unpin(pin)
  with pytest.raises(ValueError, match="the pin at depth 2 is not open"):
    index.grow(pin, [], [], {})


def test_a_state_is_placed_at_the_pin_itself():
  index = PrefixIndex(ROOMY)
  grown = begin(index, range(8))
  (slot,) = index.reserve(1, 0).slots
  grown = index.grow(grown.pin, [], [], {2: slot})
  assert grown.slots == {2: slot} and grown.pin.state is not None
  index.unpin(grown.pin)
  assert look_up(index, range(8)).slot == slot
  index.check()


@pytest.mark.parametrize(
  ("pages", "slots", "message"),
  [
    ([7], {}, "page 7 is not leased"),
    ([0, 0], {}, "2 pages"),
    ([0], {1: 9}, "slot 9 is not leased"),
    ([0], {2: 0}, "depths from 1 to 1, got 2"),
    ([0], {0: 0}, "depths from 1 to 1, got 0"),
  ],
)
def test_what_is_refused_changes_nothing(pages, slots, message):
  index = PrefixIndex(ROOMY)
  index.reserve(1, 1)
  pin = index.pin(None)
  before = index.stats
  with pytest.raises(ValueError, match=message):
    index.grow(pin, ["a"], pages, slots)
  assert index.stats == before
  index.free([0], [0])
  index.unpin(pin)
  index.check()


def test_a_held_or_gone_state_is_not_dropped():
  index = PrefixIndex(ROOMY)
  grown = begin(index, range(8), depths=(2,))
  state = grown.pin.state
  with pytest.raises(ValueError, match="held by a pin"):
    index.drop(state)
  index.unpin(grown.pin)
  index.drop(state)
  with pytest.raises(ValueError, match="not stored"):
    index.drop(state)


def test_claims_are_taken_back_and_others_stay():
  index = PrefixIndex(ROOMY)
  grown = begin(index, range(12), depths=(1, 2, 3))
  mine = index.claim(grown.pin, [1, 2, 3])
  index.claim(grown.pin, [1])
  index.unpin(grown.pin)
  index.unclaim(mine.values())
  assert [state.node.depth for state in index.states] == [1]
  index.check()


def test_the_same_prompt_twice_is_one_entry_left_by_two():
  index = PrefixIndex(ROOMY)
  entry = store(index, range(9), depths=(2,)).entry
  assert store(index, range(9), depths=(2,)).entry is entry
  assert (len(index), entry.count, entry.states) == (1, 2, (2,))
  index.forget(entry)
  assert entry in index
  index.forget(entry)
  assert entry not in index and index.held_slots == 1
  index.forget(entry)  # gone already: no error
  index.check()


def test_memory_of_what_is_remembered_is_bounded():
  index = PrefixIndex(Budget(1 << 20, 100, 10, remembered_bytes=20_000))
  for i in range(200):
    store(index, [i, 1, 2, 3, 4, 5])
    assert index.stats.remembered_bytes <= 20_000
  assert 0 < len(index) < 30
  assert len(index) + index.stats.forgotten == 200
  assert look_up(index, [0, 1, 2, 3, 4]).overlap_tokens == 0
  assert look_up(index, [199, 1, 2, 3, 4]).overlap_tokens == 5
  for i in range(40):  # Tenants whose prompts are not complete yet.
    begin(index, [i] * 4, (), salt=bytes([i]))
    index.check()


def test_nothing_is_remembered_without_memory_for_it():
  index = PrefixIndex(Budget(1 << 20, 100, 10, remembered_bytes=0))
  store(index, range(9), depths=(2,))
  assert len(index) == 0 and look_up(index, range(9)).resume_blocks == 2
  index.drop(index.states[0])
  assert look_up(index, range(9)).overlap_tokens == 0
  index.check()


def test_a_smaller_budget_evicts_until_it_is_kept():
  index = small(slots=4, pages=8)
  for i in range(4):
    store(index, [i] * 8, depths=(2,))
  index.set_budget(Budget(1000, 100, 10, slots=2, pages=8))
  assert [s.node.key for s in index.states] == [
    blocks_of([i] * 4)[0][0] for i in (2, 3)
  ]
  index.check()


def test_clear_spares_what_is_pinned():
  index = PrefixIndex(ROOMY)
  store(index, range(50, 60), depths=(2,))
  grown = begin(index, range(8), depths=(2,))
  index.clear()
  assert (len(index), index.held_slots, index.held_pages) == (0, 1, 2)
  index.unpin(grown.pin)
  index.check()
  index.clear()
  assert index.held_bytes == 0
  index.check()


def test_block_sizes_and_limits_are_checked():
  with pytest.raises(ValueError, match="block_size must be at least 1"):
    PrefixIndex(ROOMY, block_size=0)
  with pytest.raises(ValueError, match="limit must not be negative"):
    PrefixIndex(ROOMY).match(["a"], limit=-1)
