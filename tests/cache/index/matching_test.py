"""What is found of a prompt, and where it resumes."""

import pytest

from sparse_prefix_jax.cache.index import Budget, PrefixIndex
from tests.cache.index.short_prompts import (
  CHUNK,
  ROOMY,
  begin,
  blocks_of,
  look_up,
  store,
)


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
  assert index.held_pages == 0  # no state needs them


def test_an_empty_prompt():
  index = PrefixIndex(ROOMY)
  nothing = look_up(index, [])
  assert (nothing.overlap_tokens, nothing.slot) == (0, -1)
  assert nothing.reason == "no_overlap"
  stored = store(index, [])
  assert stored.pages == () and index.held_bytes == 0 and len(index) == 1
  assert look_up(index, []) == nothing


def test_a_prompt_shorter_than_a_block_is_found_by_its_tail():
  index = PrefixIndex(ROOMY)
  store(index, [1, 2, 3])
  found = look_up(index, [1, 2, 9])
  assert (found.overlap_tokens, found.reason) == (2, "within_chunk")
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
  assert (match.resume_blocks, match.reason) == (1, "not_placed")
  assert look_up(index, [9] * 12).reason == "no_overlap"


def test_the_reason_says_what_became_of_the_deepest_place_asked_for():
  index = PrefixIndex(Budget(250, slot_bytes=100, page_bytes=10))
  pin = begin(index, range(12)).pin
  index.refuse(pin, {1, 3})
  index.remember(pin, b"")
  index.unpin(pin)
  assert look_up(index, range(12)).reason == "not_admitted"
  assert look_up(index, range(8), limit=1).reason == "not_admitted"
  store(index, range(12), depths=(2,))
  assert look_up(index, range(8)).reason == "complete"
  # The deepest place decides, and nobody takes back that one was refused.
  assert look_up(index, range(12)).reason == "not_admitted"
  store(index, [7] * 12, depths=(1, 3))
  assert look_up(index, range(8)).reason == "evicted"
  assert look_up(index, range(12)).reason == "not_admitted"
  assert look_up(index, range(4)).reason == "not_admitted"
  assert look_up(index, range(12), limit=2).reason == "evicted"
  # Once a state is there again, nothing is left of what was before.
  store(index, range(12), depths=(2, 3))
  index.drop(index.match(blocks_of(range(12))[0]).node.state)
  assert look_up(index, range(12)).reason == "not_placed"


def test_a_match_gives_the_keys_of_the_tree_in_place_of_equal_ones():
  index = PrefixIndex(ROOMY)
  entry = store(index, range(12)).entry
  keys = blocks_of([*range(8), 9, 9, 9, 9])[0]
  match = index.match(keys)
  blocks = match.blocks(keys)
  assert blocks == [*keys]
  assert [a is b for a, b in zip(blocks, entry.blocks)] == [True, True, False]
  assert match.path[-1] is match.deepest and len(match.path) == 2


def test_the_oldest_child_may_go_before_the_others():
  index = PrefixIndex(ROOMY)
  entries = [store(index, [*range(4), *[n] * 4]).entry for n in range(3)]
  for gone, entry in enumerate(entries):
    index.forget(entry)
    index.check()
    found = [look_up(index, [*range(4), *[n] * 4]) for n in range(3)]
    assert [m.overlap_blocks == 2 for m in found] == [
      n > gone for n in range(3)
    ]


def test_a_prompt_of_another_tenant_is_told_from_an_unknown_one():
  index = PrefixIndex(ROOMY)
  first = store(index, range(12), salt=b"one").entry
  store(index, [*range(8), 9, 9], salt=b"two")
  for salt in (b"", b"three"):
    assert look_up(index, range(12), salt=salt).reason == "other_tenant"
    assert look_up(index, [9, *range(11)], salt=salt).reason == "no_overlap"
    assert look_up(index, [0], salt=salt).reason == "no_overlap"
  index.forget(first)
  assert look_up(index, range(12)).reason == "other_tenant"
  index.clear()
  assert look_up(index, range(12)).reason == "no_overlap"


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
  index.drop(look_up(index, range(8), salt=b"mine").node.state)
  assert look_up(index, range(8), salt=b"mine").overlap_tokens == 8
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
    slots = {1: lease.slots[0]}
    index.grow(index.pin(None), [Colliding(name)], lease.pages, slots)
  slots = {index.match([Colliding(name)]).slot for name in "abc"}
  assert len(slots) == 3 and index.held_pages == 3
  assert index.match([Colliding("d")]).overlap_blocks == 0
  index.check()


def test_hash_ids_of_a_trace_are_keys():
  index = PrefixIndex(ROOMY, block_size=512)
  lease = index.reserve(1, 3)
  index.grow(index.pin(None), [7, 8, 9], lease.pages, {3: lease.slots[0]})
  match = index.match([7, 8, 1])
  assert (match.overlap_blocks, match.overlap_tokens) == (2, 1024)
  assert index.match([1]).overlap_tokens == 0
  assert index.match([]).overlap_tokens == 0
  index.check()


def test_a_prompt_of_very_many_blocks():
  index = PrefixIndex(Budget(10**9, slot_bytes=1, page_bytes=1))
  count = 5_000
  lease = index.reserve(1, count)
  slots = {count: lease.slots[0]}
  index.unpin(index.grow(index.pin(None), range(count), lease.pages, slots).pin)
  assert index.match(range(count)).resume_blocks == count
  index.clear()
  assert index.held_bytes == 0
