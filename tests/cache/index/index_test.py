"""Room is made by evicting, no more than is needed and in the right order."""

import pytest

from sparse_prefix_jax.cache.index import Budget, CapacityError, PrefixIndex
from tests.cache.index.short_prompts import ROOMY, look_up, store


def test_fifo_and_lru_evict_different_entries():
  kept = {}
  for eviction in ("fifo", "lru"):
    index = PrefixIndex(Budget(20, slot_bytes=0, page_bytes=10), eviction)
    store(index, [0] * 4, depths=(1,))
    store(index, [1] * 4, depths=(1,))
    look_up(index, [0] * 5)
    store(index, [2] * 4, depths=(1,))
    kept[eviction] = [look_up(index, [i] * 4).overlap_blocks for i in range(3)]
  assert kept == {"fifo": [0, 1, 1], "lru": [1, 0, 1]}


def test_a_look_without_touch_is_no_use():
  index = PrefixIndex(ROOMY)
  entries = tuple(store(index, [i] * 4, depths=(1,)).entry for i in range(2))
  look_up(index, [0] * 4, touch=False)
  assert index.entries == entries
  look_up(index, [0] * 4)
  assert index.entries == entries[::-1]


def test_the_last_to_claim_a_slot_is_the_one_that_is_used():
  index = PrefixIndex(ROOMY)
  first = store(index, [1] * 4 + [2] * 4, depths=(1,)).entry
  second = store(index, [1] * 4 + [3] * 4, claim=(1,)).entry
  third = store(index, [1] * 4 + [4] * 4).entry
  look_up(index, [1] * 5)
  assert index.entries == (first, third, second)


def test_claiming_again_makes_an_entry_the_last_to_claim():
  index = PrefixIndex(ROOMY)
  first = store(index, [1] * 4 + [2] * 4, depths=(1,)).entry
  second = store(index, [1] * 4 + [3] * 4, claim=(1,)).entry
  store(index, [1] * 4 + [2] * 4, claim=(1,))
  other = store(index, [5] * 4).entry
  look_up(index, [1] * 5)
  assert index.entries == (second, other, first)


def test_without_a_slot_the_last_one_through_the_node_is_used():
  index = PrefixIndex(ROOMY)
  first = store(index, [1] * 4 + [2] * 4).entry
  second = store(index, [1] * 4 + [3] * 4).entry
  third = store(index, [5] * 4).entry
  look_up(index, [1] * 5)
  assert index.entries == (first, third, second)
  index.evict(second)
  look_up(index, [1] * 5)
  assert index.entries == (first, third)
  index.check()


def test_capacity_of_one_slot():
  index = PrefixIndex(Budget(10**6, slot_bytes=1, page_bytes=1, slots=1))
  for i in range(3):
    done = store(index, [i] * 8, depths=(2,))
    assert done.slots == {2: 0} and index.held_slots == 1
  assert look_up(index, [1] * 8).resume_blocks == 0
  assert look_up(index, [2] * 8).resume_blocks == 2


def test_what_is_reserved_counts_as_held():
  index = PrefixIndex(Budget(100, slot_bytes=30, page_bytes=10))
  lease = index.reserve(2, 4)
  assert index.held_bytes == 100
  with pytest.raises(CapacityError, match="are in use"):
    index.reserve(0, 1)
  index.free(*lease)
  assert index.held_bytes == 0
  assert index.reserve(0, 10).slots == ()


def test_what_nobody_holds_is_neither_stored_nor_leased():
  index = PrefixIndex(Budget(100, slot_bytes=1, page_bytes=1, slots=3, pages=4))
  gone = store(index, [9] * 4, depths=(1,)).entry
  done = store(index, range(8), depths=(2,))
  lease = index.reserve(1, 1)
  held = {*done.slots.values(), *lease.slots}, {*done.pages, *lease.pages}
  index.evict(gone)
  unheld = index.unheld()
  assert sorted(unheld.slots) == sorted({0, 1, 2} - held[0])
  assert sorted(unheld.pages) == sorted({0, 1, 2, 3} - held[1])
  with pytest.raises(ValueError, match="slots and pages must be numbers"):
    PrefixIndex(ROOMY).unheld()


def test_a_prompt_longer_than_the_capacity_changes_nothing():
  index = PrefixIndex(Budget(30, slot_bytes=10, page_bytes=10))
  store(index, range(8), depths=(2,))
  before = index.stats, index.entries, look_up(index, range(8))
  with pytest.raises(CapacityError, match="capacity is 30 bytes"):
    index.reserve(0, 4)
  assert (index.stats, index.entries, look_up(index, range(8))) == before


def test_no_more_is_evicted_than_needed():
  index = PrefixIndex(Budget(60, slot_bytes=10, page_bytes=10), "fifo")
  entries = [store(index, [i] * 8).entry for i in range(3)]
  index.reserve(0, 1)
  assert index.entries == tuple(entries[1:]) and index.evictions == 1


@pytest.mark.parametrize(("slots", "pages"), [(-1, 0), (0, -1)])
def test_a_negative_reservation_is_refused(slots, pages):
  with pytest.raises(ValueError, match="must not be negative"):
    PrefixIndex(ROOMY).reserve(slots, pages)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="eviction must be one of fifo, lru"):
    PrefixIndex(ROOMY, "random")
  with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
    PrefixIndex(ROOMY, block_size=0)
  with pytest.raises(ValueError, match="limit must not be negative, got -1"):
    PrefixIndex(ROOMY).match((), limit=-1)
