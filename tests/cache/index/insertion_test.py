"""What an entry keeps, shares and replaces; bad insertions change nothing."""

import jaxtyping
import pytest

from sparse_prefix_jax.cache.index import Budget, PrefixIndex, token_blocks
from tests.cache.index.short_prompts import CHUNK, ROOMY, look_up, store


def test_shared_pages_count_once():
  index = PrefixIndex(ROOMY)
  first = store(index, [1] * 8 + [2] * 4)
  second = store(index, [1] * 8 + [3] * 4)
  assert first.pages[:2] == second.pages[:2]
  assert index.held_pages == 4 and index.held_bytes == 40
  index.evict(first.entry)
  assert index.held_pages == 3
  index.evict(second.entry)
  assert index.held_pages == 0


def test_a_duplicate_keeps_the_first_numbers_and_frees_the_second():
  index = PrefixIndex(ROOMY)
  blocks, tail = token_blocks(range(10), CHUNK)
  one, two = index.reserve(2, 2), index.reserve(2, 2)
  first = index.insert(blocks, tail, one.pages, dict(zip((1, 2), one.slots)))
  again = index.insert(blocks, tail, two.pages, dict(zip((1, 2), two.slots)))
  assert again.entry is first.entry and len(index) == 1
  assert (again.pages, again.slots) == (first.pages, first.slots)
  assert again.freed_pages == two.pages and again.freed_slots == two.slots
  assert (index.held_slots, index.held_pages) == (2, 2)
  index.check()
  with pytest.raises(ValueError, match="not leased"):
    index.free(pages=two.pages)


def test_storing_the_same_prompt_for_ever_grows_nothing():
  index = PrefixIndex(ROOMY)
  for depth in (1, 2, 3, 1, 2, 3):
    done = store(index, range(13), depths=(depth,))
  assert len(index) == 1 and set(done.entry.claims) == {1, 2, 3}
  assert (index.held_slots, index.held_pages) == (3, 3)


def test_storing_again_makes_the_entry_the_newest():
  for eviction in ("fifo", "lru"):
    index = PrefixIndex(ROOMY, eviction)
    entries = [store(index, [i] * 4).entry for i in range(3)]
    store(index, [0] * 4)
    assert index.entries == (entries[1], entries[2], entries[0])


def test_the_same_blocks_with_another_tail_are_another_entry():
  index = PrefixIndex(ROOMY)
  store(index, [1] * 4 + [2])
  store(index, [1] * 4 + [3])
  assert len(index) == 2 and index.held_pages == 1
  assert look_up(index, [1] * 4 + [3, 4]).overlap_tokens == 5


def test_a_slot_lives_while_somebody_claims_it():
  index = PrefixIndex(ROOMY)
  first = store(index, [1] * 8 + [2] * 4, depths=(2,))
  second = store(index, [1] * 8 + [3] * 4, claim=(2, 3))
  assert second.slots == first.slots
  index.evict(first.entry)
  assert look_up(index, [1] * 8).slot == first.slots[2]
  index.evict(second.entry)
  assert index.held_slots == 0


def test_a_slot_that_nobody_else_claims_goes_with_its_entry():
  index = PrefixIndex(ROOMY)
  first = store(index, [1] * 8 + [2] * 4, depths=(2,))
  store(index, [1] * 8 + [3] * 4)
  index.evict(first.entry)
  index.check()
  match = look_up(index, [1] * 8)
  assert (match.overlap_blocks, match.slot) == (2, -1)
  assert index.held_slots == 0


def test_the_tree_s_own_numbers_may_be_passed():
  index = PrefixIndex(ROOMY)
  first = store(index, range(8), depths=(1,))
  done = index.insert(
    token_blocks(range(8), CHUNK)[0], b"\0\0\0\1", first.pages, first.slots
  )
  assert done.freed_pages == done.freed_slots == ()
  assert index.held_slots == 1
  index.evict(first.entry)
  assert look_up(index, range(8)).slot == first.slots[1]


def test_a_conversation_that_goes_on_replaces_its_entry():
  index = PrefixIndex(ROOMY)
  turn = store(index, range(8), depths=(1, 2))
  longer = store(index, range(13), depths=(3,), claim=(2,), replace=turn.entry)
  assert index.entries == (longer.entry,)
  assert longer.slots[2] == turn.slots[2] and set(longer.slots) == {2, 3}
  assert (index.held_slots, index.held_pages) == (2, 3)


def test_replacing_what_is_gone_is_no_error():
  index = PrefixIndex(ROOMY)
  turn = store(index, range(8))
  index.evict(turn.entry)
  assert (
    len({*index.entries, store(index, range(9), replace=turn.entry)[0]}) == 1
  )


def test_replacing_an_entry_by_itself_drops_its_old_claims():
  index = PrefixIndex(ROOMY)
  first = store(index, range(12), depths=(1, 2))
  again = store(index, range(12), depths=(3,), claim=(2,), replace=first.entry)
  assert again.entry is first.entry and set(again.entry.claims) == {2, 3}
  assert index.held_slots == 2


def test_the_number_of_entries_is_bounded():
  budget = Budget(100, slot_bytes=1, page_bytes=1, entries=2)
  index = PrefixIndex(budget, "fifo")
  done = [store(index, [i]).entry for i in range(4)]
  assert index.entries == (done[2], done[3]) and index.evictions == 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"pages": (0,)}, "one page per block: 2 blocks, got 1"),
    ({"pages": (0, 0)}, "page 0 is named twice"),
    ({"pages": (0, 9)}, "page 9 is not leased"),
    ({"slots": {3: 0}}, "slots .* between 1 and the 2 blocks .* got 3"),
    ({"slots": {0: 0}}, "slots .* got 0"),
    ({"slots": {1: 0, 2: 0}}, "slot 0 is named twice"),
    ({"slots": {1: 9}}, "slot 9 is not leased"),
    ({"claim": (3,)}, "claim .* got 3"),
    ({"blocks": (b"1234", b"12345678")}, "blocks must all be bytes"),
    ({"blocks": (b"1234", 5)}, "blocks must all be bytes"),
    ({"tail": b"1234"}, "tail must be shorter than a block of 4 bytes, got 4"),
  ],
)
def test_a_bad_insertion_changes_nothing(change, message):
  index = PrefixIndex(ROOMY)
  lease = index.reserve(1, 2)
  before = index.stats
  good = {
    "blocks": (b"1234", b"5678"),
    "tail": b"",
    "pages": lease.pages,
    "slots": {2: lease.slots[0]},
  }
  with pytest.raises(ValueError, match=message):
    index.insert(**(good | change))
  assert index.stats == before
  index.check()
  assert index.insert(**good).pages == lease.pages


def test_a_key_that_has_no_hash_changes_nothing():
  index = PrefixIndex(ROOMY)
  lease = index.reserve(0, 2)
  keys = (1, ([],))
  with pytest.raises(TypeError, match="unhashable"):
    index.insert(keys, b"", lease.pages, {})
  assert index.stats.leased_pages == 2
  index.check()


def test_a_tail_that_is_not_bytes_changes_nothing():
  index = PrefixIndex(ROOMY)
  # Outside of tests nobody checks annotations.
  jaxtyping.config.update("jaxtyping_disable", True)
  try:
    with pytest.raises(ValueError, match="tail must be bytes, got str"):
      index.insert((), "tail", (), {})
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)
  assert len(index) == 0
