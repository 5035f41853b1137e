"""Each rule of the index by itself."""

import jaxtyping
import pytest

from sparse_prefix_jax.cache.index import (
  Budget,
  CapacityError,
  PrefixIndex,
  token_blocks,
)

CHUNK = 4
ROOMY = Budget(10**6, slot_bytes=100, page_bytes=10)


def store(index, tokens, depths=(), *, salt=b"", chunk=CHUNK, **options):
  """Inserts as a request does: match, reserve what is missing, insert."""
  blocks, tail = token_blocks(tokens, chunk)
  stored = index.match(blocks, tail, salt=salt, touch=False).overlap_blocks
  pin = index.pin(blocks, stored, salt=salt)
  pages = (
    tuple(node.page for node in reversed([*pin.node.upwards()]))
    if (pin.node)
    else ()
  )
  lease = index.reserve(len(depths), len(blocks) - stored)
  done = index.insert(
    blocks,
    tail,
    (*pages, *lease.pages),
    dict(zip(depths, lease.slots)),
    salt=salt,
    **options,
  )
  index.unpin(pin)
  index.check()
  return done


def look_up(index, tokens, **options):
  return index.match(*token_blocks(tokens, CHUNK), **options)


# Matching.


@pytest.mark.parametrize(
  ("length", "overlap_blocks", "resume"),
  [(7, 1, 0), (8, 2, 2), (9, 2, 2), (11, 2, 2), (12, 3, 2), (13, 3, 2)],
)
def test_one_token_more_or_less_than_a_lattice_point(
  length, overlap_blocks, resume
):
  index = PrefixIndex(ROOMY)
  store(index, range(16), depths=(2,))
  match = look_up(index, range(length))
  assert match.overlap_tokens == length
  assert match.overlap_blocks == overlap_blocks
  assert match.resume_blocks == resume
  assert len(match.pages) == resume


@pytest.mark.parametrize("stored", [7, 8, 9])
def test_a_stored_prompt_around_a_lattice_point(stored):
  index = PrefixIndex(ROOMY)
  store(index, range(stored))
  match = look_up(index, range(20))
  assert (match.overlap_tokens, match.overlap_blocks) == (stored, stored // 4)
  assert index.held_pages == stored // 4


def test_an_empty_prompt():
  index = PrefixIndex(ROOMY)
  nothing = look_up(index, [])
  assert nothing == (0, 0, 0, -1, (), "no_overlap", None)
  done = store(index, [])
  assert done.pages == () and index.held_bytes == 0 and len(index) == 1
  assert look_up(index, []) == nothing
  assert index.pin((), 0).depth == 0


def test_a_prompt_shorter_than_a_block_is_found_by_its_tail():
  index = PrefixIndex(ROOMY)
  store(index, [1, 2, 3])
  assert look_up(index, [1, 2, 9]).overlap_tokens == 2
  assert look_up(index, [1, 2, 3, 4, 5]).overlap_tokens == 3
  assert index.held_bytes == 0


def test_a_prompt_equal_to_an_entry_keeps_its_last_token():
  index = PrefixIndex(ROOMY)
  store(index, range(12), depths=(2, 3))
  whole = look_up(index, range(12))
  assert (whole.resume_blocks, whole.reason) == (3, "complete")
  limited = look_up(index, range(12), limit=(12 - 1) // CHUNK)
  assert (limited.overlap_tokens, limited.resume_blocks) == (12, 2)
  assert limited.reason == "last_token"


def test_the_limit_may_be_below_every_state():
  index = PrefixIndex(ROOMY)
  store(index, range(12), depths=(3,))
  limited = look_up(index, range(12), limit=2)
  assert (limited.resume_blocks, limited.slot) == (0, -1)
  assert limited.reason == "last_token"
  assert look_up(index, range(12), limit=0).reason == "last_token"


def test_a_state_right_at_the_limit_is_as_deep_as_may_be():
  index = PrefixIndex(ROOMY)
  store(index, range(12), depths=(2,))
  limited = look_up(index, range(12), limit=2)
  assert (limited.resume_blocks, limited.reason) == (2, "last_token")


def test_the_reason_names_a_missing_state():
  index = PrefixIndex(ROOMY)
  store(index, range(12), depths=(1,))
  match = look_up(index, range(12), limit=2)
  assert (match.resume_blocks, match.reason) == (1, "no_state_checkpoint")
  assert look_up(index, [9] * 12).reason == "no_overlap"


def test_the_longest_match_is_over_all_entries():
  index = PrefixIndex(ROOMY)
  store(index, [1] * 8 + [2] * 8)
  store(index, [1] * 8 + [3] * 8, depths=(3,))
  store(index, [1] * 4)
  match = look_up(index, [1] * 8 + [3] * 6 + [9] * 6)
  assert (match.overlap_tokens, match.overlap_blocks) == (14, 3)
  assert match.resume_blocks == 3


def test_the_overlap_reaches_into_blocks_and_tails():
  index = PrefixIndex(ROOMY)
  store(index, [1, 1, 1, 1, 5, 5, 6, 6])
  store(index, [1, 1, 1, 1, 5, 7, 7])
  assert look_up(index, [1, 1, 1, 1, 5, 5, 6, 9]).overlap_tokens == 7
  assert look_up(index, [1, 1, 1, 1, 5, 7, 7, 9]).overlap_tokens == 7
  assert look_up(index, [1, 1, 1, 1, 5, 7]).overlap_tokens == 6
  assert look_up(index, [1, 1, 1, 1, 9]).overlap_tokens == 4


def test_salts_share_nothing():
  index = PrefixIndex(ROOMY)
  mine = store(index, range(8), depths=(2,), salt=b"mine")
  assert look_up(index, range(8)).overlap_tokens == 0
  assert look_up(index, range(8), salt=b"yours").overlap_tokens == 0
  yours = store(index, range(8), depths=(2,), salt=b"yours")
  assert not set(mine.pages) & set(yours.pages)
  assert mine.slots != yours.slots and index.held_pages == 4
  index.evict(mine.entry)
  assert look_up(index, range(8), salt=b"yours").resume_blocks == 2


class Colliding:
  """A key whose hash says nothing."""

  def __init__(self, name):
    self.name = name

  def __hash__(self):
    return 7

  def __eq__(self, other):
    return isinstance(other, Colliding) and self.name == other.name


def test_equal_hashes_of_different_keys_do_not_match():
  index = PrefixIndex(ROOMY)
  for name in "abc":
    lease = index.reserve(1, 1)
    index.insert([Colliding(name)], b"", lease.pages, {1: lease.slots[0]})
  slots = {index.match([Colliding(name)]).slot for name in "abc"}
  assert len(slots) == 3 and index.held_pages == 3
  assert index.match([Colliding("d")]).overlap_blocks == 0
  index.check()


def test_hash_ids_of_a_trace_are_keys():
  index = PrefixIndex(ROOMY, block_size=512)
  lease = index.reserve(1, 3)
  index.insert([7, 8, 9], b"", lease.pages, {3: lease.slots[0]})
  match = index.match([7, 8, 1])
  assert (match.overlap_blocks, match.overlap_tokens) == (2, 1024)
  assert index.match([1]).overlap_tokens == 0
  assert index.match([]).overlap_tokens == 0
  index.check()


def test_a_prompt_of_very_many_blocks():
  index = PrefixIndex(Budget(10**9, slot_bytes=1, page_bytes=1))
  count = 5_000
  lease = index.reserve(1, count)
  index.insert(range(count), b"", lease.pages, {count: lease.slots[0]})
  index.unpin(index.pin(range(count), count))
  assert index.match(range(count)).resume_blocks == count
  index.clear()
  assert index.held_bytes == 0


# Storing.


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


# Making room.


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


# Pins.


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


# What is refused.


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


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="eviction must be one of fifo, lru"):
    PrefixIndex(ROOMY, "random")
  with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
    PrefixIndex(ROOMY, block_size=0)
  with pytest.raises(ValueError, match="limit must not be negative, got -1"):
    PrefixIndex(ROOMY).match((), limit=-1)
