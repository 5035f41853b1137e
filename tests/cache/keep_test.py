"""How much of a sequence is stored when it ends: `close(keep=)`."""

import pytest

from tests.cache.store_scenes import (
  CHUNK,
  computed,
  decode,
  ids,
  new_store,
  opened,
  request,
)


@pytest.mark.parametrize("keep", [-1, 16])
def test_keep_is_checked(keep):
  store = new_store()
  running = computed(store, ids(15))
  with pytest.raises(ValueError, match=f"keep is {keep}; it must be 0 to the"):
    store.close(running, keep)
  assert store.find(running.handle) is running


def test_keep_takes_back_what_is_beyond():
  store = new_store("block", CHUNK)
  running = computed(store, ids(17))
  decode(store, running, range(7))
  store.close(running, keep=10)
  store.audit()
  match = store.match(request([*ids(17), *range(7)]))
  assert (match.overlap_tokens, match.resume_blocks) == (10, 2)


def test_keep_spares_what_others_claim():
  store = new_store("block", CHUNK)
  first, second = computed(store, ids(17)), computed(store, ids(17))
  store.close(second, keep=0)
  assert store.match(request([*ids(17), 1])).resume_blocks == 4
  store.close(first)
  third = computed(store, ids(17))
  store.close(third, keep=4)
  assert store.match(request([*ids(17), 1])).resume_blocks == 4
  store.audit()


def test_keep_spares_the_state_where_another_has_ended():
  """Its answer is short, and the state before it was in the tree already."""
  store = new_store()
  first = computed(store, ids(13), anchors=(8,))
  second = computed(store, ids(8))
  decode(store, second, [1, 2])
  store.close(second)
  store.close(first, keep=0)
  assert store.match(request([*ids(8), 1, 2, 3])).resume_blocks == 2
  store.audit()


def known(store):
  """Blocks to resume after, of a prompt that goes on where a state was."""
  return store.match(request([*ids(8), 1, 2, 3])).resume_blocks


@pytest.mark.parametrize("size", [1, 9])
def test_what_was_taken_back_goes_with_its_last_pin(size):
  """Another one reads it; it is none that the placement would have kept."""
  store = new_store("block", 400)
  first = computed(store, ids(13), anchors=(8,))
  second = opened(store, [*ids(8), *range(size)])
  store.close(first, keep=0)
  assert known(store) == 2
  store.commit(second, store.next_segment(second))
  store.audit()
  assert known(store) == (2 if size == 1 else 0)
  store.close(second)
  store.audit()
  assert known(store) == 0


def test_what_was_taken_back_stays_where_somebody_wants_it_meanwhile():
  store = new_store("block", 400)
  first = computed(store, ids(13), anchors=(8,))
  second = computed(store, [*ids(8), 5])
  store.close(first, keep=0)
  store.close(computed(store, [*ids(8), 6, 7], anchors=(8,)))
  store.close(second)
  store.audit()
  assert known(store) == 2


def test_keep_of_a_fork_spares_its_twin():
  store = new_store("block", CHUNK)
  running = computed(store, ids(17))
  twin, _ = store.fork(running)
  store.close(running, keep=0)
  assert store.match(request([*ids(17), 1])).resume_blocks == 4
  store.close(twin)
  assert store.match(request([*ids(17), 1])).resume_blocks == 4
  store.audit()


@pytest.mark.parametrize("keep", [17, 20, 22, 24])
def test_keep_within_the_answer_stores_its_pages(keep):
  store = new_store()
  running = computed(store, ids(17))
  decode(store, running, range(8))
  store.close(running, keep=keep)
  store.audit()
  match = store.match(request([*ids(17), *range(8), 9]))
  assert match.overlap_tokens == keep
  assert match.resume_blocks == (6 if keep >= 24 else 4)


@pytest.mark.parametrize("keep", [None, 0, 9])
def test_keep_of_a_prompt_that_is_not_computed_to_its_end(keep):
  store = new_store("block", CHUNK)
  computed(store, ids(4))
  running = opened(store, ids(30))
  store.commit(running, store.next_segment(running, 16))
  store.close(running, keep)
  store.audit()
  depth = store.match(request(ids(30))).resume_blocks
  assert depth == {None: 5, 0: 1, 9: 2}[keep]
