"""What is pinned stays, and goes when the last pin does."""

import pytest

from sparse_prefix_jax.cache.index import (
  Budget,
  CapacityError,
  PrefixIndex,
  token_blocks,
)
from tests.cache.index.short_prompts import CHUNK, ROOMY, look_up, store


def test_what_is_pinned_survives_its_entry():
  index = PrefixIndex(Budget(60, slot_bytes=20, page_bytes=10))
  store(index, range(16), depths=(2,))
  before = look_up(index, range(16))
  pin = index.pin(token_blocks(range(16), CHUNK)[0], 2)
  index.reserve(0, 2)
  index.clear()
  index.check()
  after = look_up(index, range(16))
  assert after.overlap_blocks == 2 and len(index) == 0
  assert (after.slot, after.pages) == (before.slot, before.pages)
  with pytest.raises(CapacityError):
    index.reserve(0, 1)
  index.unpin(pin)
  assert look_up(index, range(16)).overlap_tokens == 0
  assert (index.held_slots, index.held_pages) == (0, 2)
  index.check()


def test_only_the_slot_at_the_pinned_depth_is_pinned():
  index = PrefixIndex(ROOMY)
  done = store(index, range(12), depths=(1, 2, 3))
  index.pin(token_blocks(range(12), CHUNK)[0], 2)
  index.clear()
  assert (index.held_slots, index.held_pages) == (1, 2)
  assert look_up(index, range(12)).slot == done.slots[2]
  index.check()


def test_a_pin_without_a_slot_does_not_hold_one_that_comes_later():
  index = PrefixIndex(ROOMY)
  store(index, range(8))
  pin = index.pin(token_blocks(range(8), CHUNK)[0], 2)
  later = store(index, range(8), depths=(2,))
  index.evict(later.entry)
  assert (index.held_slots, index.held_pages) == (0, 2)
  index.check()
  index.unpin(pin)
  assert index.held_pages == 0


def test_pins_add_up():
  index = PrefixIndex(ROOMY)
  store(index, range(8), depths=(2,))
  blocks, _ = token_blocks(range(8), CHUNK)
  pins = [index.pin(blocks, depth) for depth in (2, 2, 1)]
  index.clear()
  for pin, held in zip(pins, ((1, 2), (0, 1), (0, 0))):
    index.unpin(pin)
    index.check()
    assert (index.held_slots, index.held_pages) == held


def test_an_entry_in_use_goes_last():
  index = PrefixIndex(Budget(30, slot_bytes=0, page_bytes=10), "fifo")
  entries = [store(index, [i] * 4).entry for i in range(3)]
  index.pin(token_blocks([0] * 4, CHUNK)[0], 1)
  index.reserve(0, 1)
  assert index.entries == (entries[0], entries[2])


def test_of_entries_that_end_alike_one_is_enough_for_a_pin():
  index = PrefixIndex(Budget(30, slot_bytes=0, page_bytes=10), "fifo")
  entries = [store(index, [0] * 4 + [i]).entry for i in range(3)]
  index.pin(token_blocks([0] * 4, CHUNK)[0], 1)
  other = store(index, [1] * 4).entry
  index.reserve(0, 2)
  assert index.entries == (entries[2],) and other not in index


@pytest.mark.parametrize("depth", [-1, 3])
def test_a_pin_deeper_than_what_is_stored_is_refused(depth):
  index = PrefixIndex(ROOMY)
  store(index, range(8))
  with pytest.raises(ValueError, match=f"2 blocks that are stored .* {depth}"):
    index.pin(token_blocks(range(16), CHUNK)[0], depth)
  assert index.stats.pins == 0
  index.check()


def test_a_pin_is_given_back_once_and_to_its_own_index():
  index, other = PrefixIndex(ROOMY), PrefixIndex(ROOMY)
  for each in (index, other):
    store(each, range(8))
  pin = index.pin(token_blocks(range(8), CHUNK)[0], 2)
  with pytest.raises(ValueError, match="not open"):
    other.unpin(pin)
  index.unpin(pin)
  with pytest.raises(ValueError, match="not open"):
    index.unpin(pin)
