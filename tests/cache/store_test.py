"""PrefixStore: each verb happens entirely or not at all, and counts add up."""

import gc

import pytest

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.running import SequenceHandle
from sparse_prefix_jax.cache.waves import next_wave
from sparse_prefix_jax.evaluation.store_rules import commit_all, serve
from tests.cache.store_scenes import (
  CHUNK,
  computed,
  decode,
  ids,
  new_store,
  opened,
  request,
)


def test_a_match_changes_nothing():
  store = new_store()
  serve(store, request(ids(19)))
  before = store.stats()
  assert store.match(request([*ids(19), 1])).resume_blocks == 4
  assert store.stats() == before


def test_open_pins_leases_and_places():
  store = new_store("balanced", 2)
  running = opened(store, ids(30))
  assert running.captured == (8, 16) or len(running.captured) == 2
  held = store.index.stats
  assert (held.leased_slots, held.leased_pages, held.pins) == (4, 8, 1)
  store.audit()
  commit_all(store, running)
  store.close(running)
  held = store.index.stats
  assert (held.leased_slots, held.leased_pages, held.pins) == (0, 0, 0)
  assert held.states == 2
  store.audit()


def test_a_wave_that_does_not_fit_holds_nothing_and_is_not_observed():
  store = new_store(slots=4, pages=12)
  serve(store, request(ids(9)))
  before = store.stats(), store.index.stats, store.planner.observations
  with pytest.raises(CapacityError, match="running sequences hold"):
    store.open([request(ids(20, seed)) for seed in range(3)])
  assert store.running == ()
  assert before == (
    store.stats(),
    store.index.stats,
    store.planner.observations,
  )
  store.audit()


def test_a_wave_observes_all_before_it_places_any():
  order = []
  store = new_store()
  observe, positions = store.planner.observe, store.planner.positions

  def observed(*arguments, **named):
    order.append("observe")
    observe(*arguments, **named)

  def placed(*arguments, **named):
    order.append("place")
    return positions(*arguments, **named)

  store.planner.observe, store.planner.positions = observed, placed
  store.open([request(ids(9, seed)) for seed in range(3)])
  assert order == ["observe"] * 3 + ["place"] * 3


def test_pins_in_the_way_are_given_up():
  store = new_store(slots=3, pages=9)
  serve(store, request(ids(19)))
  running = opened(store, ids(20))
  assert running.resumed == 16
  store.close(running)
  store = new_store(slots=2, pages=5)
  running = computed(store, ids(17))
  decode(store, running, range(3))
  store.close(running)
  running = opened(store, [*ids(17), 0, 1, 2])
  assert (running.match.reason, running.resumed) == ("last_token", 0)
  store.close(running, keep=0)
  store = new_store(slots=2, pages=6)
  running = computed(store, ids(17))
  decode(store, running, range(4))
  store.close(running)
  running = opened(store, [*ids(17), 0, 1, 2, 3])
  assert (running.match.reason, running.resumed) == ("no_room", 0)
  assert running.match.overlap_tokens == 21


def test_segments_are_cut_on_the_lattice():
  store = new_store("block", CHUNK)
  running, cuts = opened(store, ids(23)), []
  while segment := store.next_segment(running, 9):
    cuts.append((segment.start, segment.stop))
    assert segment.read == (running.carry_slot if cuts[1:] else -1)
    store.commit(running, segment)
    store.audit()
  assert cuts == [(0, 8), (8, 16), (16, 23)]
  assert running.states == 5 and running.lattice_slot >= 0
  store.close(running)
  store.audit()


def test_a_cut_prompt_is_no_entry_before_its_end():
  store = new_store()
  running = opened(store, ids(23))
  store.commit(running, store.next_segment(running, 8))
  assert len(store.index) == 0
  assert store.match(request(ids(23))).overlap_tokens == 8
  store.drop(running)
  store.audit()
  assert store.index.held_bytes == 0


def test_handles_are_checked():
  store, other = new_store(), new_store()
  running = computed(store, ids(5))
  handle = running.handle
  assert store.find(handle) is running
  with pytest.raises(ValueError, match="another cache"):
    other.find(handle)
  decode(store, running, [1])
  with pytest.raises(ValueError, match="decoded further, to 6 tokens"):
    store.find(handle)
  store.close(running)
  with pytest.raises(ValueError, match="was released"):
    store.find(SequenceHandle(handle.number, 6))


def test_a_reset_says_why_to_every_handle():
  store = new_store()
  handles = [computed(store, ids(9, seed)).handle for seed in range(2)]
  store.reset("the weights of its cache were replaced")
  for handle in handles:
    with pytest.raises(ValueError, match=r"has ended: the weights of its"):
      store.find(handle)
  assert store.index.held_bytes == len(store.index) == 0
  store.audit()


def test_form_of_decoding_is_kept():
  store = new_store()
  running = computed(store, ids(5))
  store.advance([running], exact=True)
  store.append(running, 1)
  commit_all(store, running)
  with pytest.raises(ValueError, match="decoded with exact=True"):
    store.advance([running])
  assert running.length == 6


@pytest.mark.parametrize("exact", [False, True])
def test_a_chunk_that_nobody_computed_is_not_stored(exact):
  """Its last token was read, and no program was dispatched for it."""
  store = new_store()
  running = computed(store, ids(7))
  store.advance([running], exact=exact)
  store.append(running, 1)
  store.close(running)
  store.audit()
  match = store.match(request([*ids(7), 1, 2]))
  assert (match.overlap_tokens, match.resume_blocks) == (7, 1)


def test_no_page_for_one_of_several_changes_none():
  store = new_store(slots=8, pages=5)
  first, second = (computed(store, ids(8, seed)) for seed in range(2))
  with pytest.raises(CapacityError):
    store.advance([first, second])
  assert (first.length, second.length) == (8, 8)
  store.audit()


def test_a_fork_shares_and_each_goes_on():
  store = new_store()
  running = computed(store, ids(10))
  decode(store, running, range(5))
  twin, copies = store.fork(running)
  store.audit()
  assert copies.page == (running.pages[-1], twin.pages[-1])
  assert copies.slots[0] == (running.running_slot, running.own_slot)
  assert (
    twin.pages[:3] == running.pages[:3] and twin.pages[3] != running.pages[3]
  )
  decode(store, twin, range(100, 109))
  decode(store, running, range(9))
  assert running.tokens.ids[15] == 0 and twin.tokens.ids[15] == 100
  for one in (twin, running):
    store.close(one)
    store.audit()
  for past in ([*range(5), *range(9)], [*range(5), *range(100, 109)]):
    match = store.match(request([*ids(10), *past, 7]))
    assert match.resume_blocks == 6


@pytest.mark.parametrize("forked", [False, True])
def test_a_state_that_nobody_decodes_from_makes_room(forked):
  """The one at a prompt's end, once decoding has completed a further chunk."""
  store = new_store(slots=6 if forked else 4)
  running = computed(store, ids(10))
  sequences = [running, *([store.fork(running)[0]] if forked else [])]
  other = request(ids(9, seed=1))
  for one in sequences:
    with pytest.raises(CapacityError):
      store.open([other])
    decode(store, one, range(2))
  (opened_now,) = store.open([other])
  assert store.index.stats.states == 0 and not opened_now.captures
  decode(store, running, range(2, 5))
  for one in (*sequences, opened_now):
    store.audit()
    store.close(one)
  match = store.match(request([*ids(10), *range(6)]))
  assert (match.resume_blocks, match.overlap_tokens) == (3, 15)


def test_a_fork_that_decodes_from_slots_of_its_own_holds_no_state():
  store = new_store()
  first, second = computed(store, ids(10)), computed(store, ids(10))
  for one in (first, second):
    decode(store, one, range(3))
  store.close(first)  # stores the state that the second has in its own slot
  twin, _ = store.fork(second)
  store.audit()
  for one in (second, twin):
    assert one.own_carry and one.held_slots() == {*one.leased_slots()}


def test_no_cache_holds_nothing_after_its_sequences():
  store = new_store("no_cache")
  running = computed(store, ids(10))
  twin, _ = store.fork(running)
  assert running.captured == ()
  for one in (running, twin):
    store.close(one)
    store.audit()
  assert store.index.held_bytes == len(store.index) == 0


def test_waves_wait_for_what_another_computes():
  store, document = new_store(), ids(20)
  batch = [request([*document, *ids(3, s)], index=s) for s in range(1, 4)]
  wave = next_wave(store, batch)
  assert [r.index for r in wave.requests] == [1]
  assert wave.shared == [{20}] and [r.index for r in wave.later] == [2, 3]
  (running,) = store.open(wave.requests, wave.shared)
  commit_all(store, running)
  assert 20 in running.captured
  wave = next_wave(store, wave.later)
  assert len(wave.requests) == 2 and not wave.later
  assert {r.resumed for r in store.open(wave.requests)} == {20}


def test_counts_say_what_was_found_and_why():
  store = new_store()
  for tokens in (ids(19), [*ids(19), 1], ids(3), [*ids(19), 1], ids(8)):
    serve(store, request(tokens))
  stats = store.stats()
  assert (stats.requests, stats.hits) == (5, 2)
  assert stats.prompt_tokens == 19 + 20 + 3 + 20 + 8
  assert stats.saved_tokens == 32
  assert stats.overlap_tokens == 19 + 3 + 20 + 8
  assert stats.reasons == {
    "complete": 1,
    "last_token": 1,
    "no_overlap": 1,
    "not_placed": 1,
    "within_chunk": 1,
  }


def test_host_memory_does_not_grow_beyond_what_is_counted():
  store = new_store(slots=8, pages=40)
  store.index._remembered.limit = 1 << 16
  for seed in range(400):
    serve(store, request(ids(12, seed)), range(5))
    assert store.stats().remembered_bytes <= 1 << 16
  store.audit()
  assert len(store.index) < 100


@pytest.mark.parametrize("verb", ["grow", "pin", "remember", "claim", "demote"])
def test_a_failing_close_ends_its_sequence_and_leaks_nothing(monkeypatch, verb):
  store = new_store("block", CHUNK)
  running, bystander = computed(store, ids(17)), computed(store, ids(9, 1))
  decode(store, running, range(8))

  def failing(*_, **__):
    raise MemoryError

  with monkeypatch.context() as patch:
    patch.setattr(store.index, verb, failing)
    with pytest.raises(MemoryError):
      store.close(running)
  assert store.running == (bystander,)
  store.audit()
  assert store.match(request([*ids(17), 1])).resume_blocks == 4


@pytest.mark.parametrize("verb", ["grow", "pin", "claim", "share"])
def test_a_failing_fork_leaks_nothing(monkeypatch, verb):
  store = new_store("block", CHUNK)
  running = computed(store, ids(18))

  def failing(*_, **__):
    raise MemoryError

  with monkeypatch.context() as patch:
    patch.setattr(store.index, verb, failing)
    with pytest.raises(MemoryError):
      store.fork(running)
  store.audit()
  assert store.running == (running,)
  store.fork(running)
  store.audit()


@pytest.mark.parametrize("verb", ["pin", "use"])
def test_a_failing_open_leaks_nothing(monkeypatch, verb):
  store = new_store()
  serve(store, request(ids(17)))
  before = store.index.stats

  def failing(*_, **__):
    raise MemoryError

  with monkeypatch.context() as patch:
    patch.setattr(store.index, verb, failing)
    with pytest.raises(MemoryError):
      store.open([request([*ids(17), 1]), request(ids(9, 1))])
  store.audit()
  assert store.running == ()
  assert store.index.stats.leased_slots == before.leased_slots == 0


def test_a_state_that_was_hit_is_not_put_on_probation():
  store = new_store("no_cache", slots=40)
  store.stores = store._admission._stores = True
  author = computed(store, ids(17), anchors=(8,))
  decode(store, author, range(8))
  serve(store, request([*ids(8), *ids(9, 1)], anchors=(16,)))
  store.close(author)
  assert [state.node.depth for state in store.index.states] == [2, 4, 6]
  assert list(store.index._order.rule._probation) == []


def test_salts_are_counted_and_bounded():
  store = new_store()
  store.index._remembered.limit = 50_000
  for number in range(300):
    serve(store, request(ids(3, number), salt=b"%800d" % number))
    store.audit()
  assert len(store.index._forest.roots) == len(store.index) < 40


@pytest.mark.parametrize("collects", [True, False])
def test_python_collects_garbage_when_a_prompt_is_opened(collects, monkeypatch):
  store, meanwhile = new_store(), []

  def failing(*_, **__):
    meanwhile.append(gc.isenabled())
    raise MemoryError

  monkeypatch.setattr(store.index, "match", failing)
  (gc.enable if collects else gc.disable)()
  try:
    with pytest.raises(MemoryError):
      store.open([request(ids(9))])
    assert (meanwhile, gc.isenabled()) == ([False], collects)
  finally:
    gc.enable()
