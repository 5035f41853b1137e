"""The store's verbs of decoding ahead, and of sequences in the host."""

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import Budget, CapacityError
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.placement import PlacementPolicy, Planner

CHUNK = 16


def new_store(placement="last", *, slots=8, pages=12):
  policy = PlacementPolicy(placement, chunk=CHUNK)
  budget = Budget(10_000, 10, 10, slots=slots, pages=pages)
  stores = placement != "no_cache"
  planner = Planner(policy, depths=64)
  return PrefixStore(budget, planner, chunk=CHUNK, stores=stores)


def request(size, seed=0):
  ids = np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)
  return Request.of_tokens(ids, CHUNK)


def begin(store, size, seed=0):
  (running,) = store.open([request(size, seed)])
  store.commit(running, store.next_segment(running))
  return running


def decode(store, running, tokens):
  """Steps of known ids, and canonical chunks."""
  for token in range(tokens):
    store.advance([running])
    store.append(running, token)
    segment = store.next_segment(running)
    if segment:
      store.commit(running, segment)


def matched(store, running, size):
  ids = np.append(running.tokens.ids[:size], 1).astype(np.int32)
  return store.match(Request.of_tokens(ids, CHUNK)).resume_blocks


@pytest.mark.parametrize("read", [True, False])
def test_a_token_taken_back_leaves_what_was_before(read):
  """The page that it began is free again, and nothing follows it."""
  store = new_store()
  running = begin(store, 20)
  decode(store, running, 12)
  held = store.index.held_bytes
  store.advance([running])
  if read:
    store.append(running, 7)
  store.retract(running)
  assert (running.length, running.tokens.ids.size) == (32, 32)
  assert store.index.held_bytes == held
  store.audit()
  with pytest.raises(ValueError, match="had a token taken back"):
    store.advance([running])
  store.close(running)
  assert matched(store, running, 32) == 2


def test_the_last_token_of_a_chunk_is_taken_back_with_its_key():
  store = new_store()
  running = begin(store, 20)
  decode(store, running, 11)
  store.advance([running])
  store.append(running, 7)
  assert len(running.blocks) == 2 and running.completed(CHUNK)
  store.retract(running)
  assert len(running.blocks) == 1 and not running.completed(CHUNK)


def test_what_was_not_decoded_or_is_canonical_is_not_taken_back():
  store = new_store()
  running = begin(store, 20)
  with pytest.raises(ValueError, match="cannot take a token back"):
    store.retract(running)
  decode(store, running, 12)
  with pytest.raises(ValueError, match="cannot take a token back"):
    store.retract(running)
  assert running.length == 32
  store.audit()


@pytest.mark.parametrize("read", [True, False])
def test_closing_stores_no_chunk_that_is_not_canonical(read):
  store = new_store()
  running = begin(store, 20)
  decode(store, running, 12 + 15)
  store.advance([running])
  if read:
    store.append(running, 7)
  store.close(running)
  store.audit()
  assert matched(store, running, 47) == 2
  assert max(state.node.depth for state in store.index.states) == 2


@pytest.mark.parametrize("placement", ["last", "no_cache"])
def test_a_sequence_waits_in_the_host_and_comes_back(placement):
  """It keeps its pin only, and gets as many slots and pages again."""
  store = new_store(placement)
  running = begin(store, 40)
  decode(store, running, 15)
  before = store.index.stats
  parts = store.private_parts(running)
  stored = 2 if placement == "last" else 0
  assert parts.slots == (running.running_slot, running.own_slot)
  assert list(parts.pages) == running.pages[stored:]
  store.swap_out(running)
  store.audit()
  during = store.index.stats
  assert (during.leased_slots, during.leased_pages) == (0, 0)
  assert during.pins == 1 and store.running == ()
  with pytest.raises(ValueError, match="waits in the host"):
    store.find(running.handle)
  other = begin(store, 50, seed=1)
  store.swap_in(running)
  store.close(other, 0)
  store.audit()
  assert store.index.stats.leased_pages == before.leased_pages
  again = store.private_parts(running)
  assert len(again.pages) == len(parts.pages)
  assert running.own_carry and running.pages[:stored] != again.pages
  decode(store, running, 9)
  store.close(running)
  store.audit()
  assert matched(store, running, 64) == (4 if placement == "last" else 0)


def test_a_prompt_that_is_cut_leaves_its_empty_pages_and_captures():
  store = new_store("sqrt", slots=10)
  (running,) = store.open([request(100)])
  segment = store.next_segment(running, 2 * CHUNK)
  store.commit(running, segment)
  assert running.captures
  assert store.private_parts(running).pages == ()  # They are the tree's.
  store.swap_out(running)
  store.audit()
  assert max(running.captured, default=0) <= 32
  store.swap_in(running)
  while segment := store.next_segment(running, 2 * CHUNK):
    store.commit(running, segment)
  store.close(running)
  store.audit()


def test_no_room_to_come_back_changes_nothing():
  store = new_store("no_cache", slots=4)
  running = begin(store, 20)
  store.swap_out(running)
  others = [begin(store, 20, seed) for seed in (1, 2)]
  with pytest.raises(CapacityError):
    store.swap_in(running)
  store.audit()
  store.drop(others[0])
  store.swap_in(running)
  store.audit()


@pytest.mark.parametrize("keep", [None, 0, 20, 35])
def test_closing_in_the_host_stores_the_prompt_at_most(keep):
  store = new_store()
  running = begin(store, 40)
  decode(store, running, 20)
  store.swap_out(running)
  store.close(running, keep)
  store.audit()
  depths = [state.node.depth for state in store.index.states]
  assert depths == ([2] if keep in (None, 35) else [])
  assert store.index.stats.pins == 0


def test_reset_ends_those_in_the_host_too():
  store = new_store()
  running = begin(store, 40)
  store.swap_out(running)
  store.reset("the pools are gone")
  assert store.index.stats.pins == 0
  with pytest.raises(ValueError, match="has ended: the pools are gone"):
    store.find(running.handle)


def test_other_numbers_reach_those_in_the_host():
  """Pools shrink while a sequence waits: its tree pages have other numbers."""
  store = new_store(pages=12)
  first = begin(store, 70, seed=3)
  running = begin(store, 40)
  store.close(first, 0)
  store.swap_out(running)
  moved = store.begin_resize(6, 4)
  assert moved.pages
  store.renumber(moved)
  store.end_resize(6, 4)
  store.swap_in(running)
  store.audit()
  nodes = list(running.pin.node.upwards())[::-1]
  assert running.pages[:2] == [node.page for node in nodes]
  assert running.lattice_slot == running.pin.state.number


def test_a_state_that_is_waited_for_is_captured_besides():
  store = new_store()
  (running,) = store.open([request(100)])
  assert store.await_state(running, 48)
  assert store.await_state(running, 96)  # It captures that one anyway.
  store.audit()
  while segment := store.next_segment(running, 2 * CHUNK):
    assert (48 in segment.writes) == (segment.start == 32)
    store.commit(running, segment)
  assert matched(store, running, 60) == 3
  assert not store.await_state(running, 64)  # It is past that.
  store.close(running)
  store.audit()


def test_a_state_is_not_waited_for_without_room():
  store = new_store(slots=3)
  (running,) = store.open([request(100)])
  full = store.index.stats.leased_slots == 3
  assert store.await_state(running, 48) is not full
  store.audit()
