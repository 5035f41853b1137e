"""Random schedules of everything an index can do, against a naive model."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_prefix_jax.cache.index import (
  Budget,
  CapacityError,
  PrefixIndex,
  token_blocks,
)
from tests.cache.index.naive_index import NaiveIndex, Pinned

CHUNK = 2
# Few texts, so that requests meet: in whole blocks, inside of one, in tails.
TEXTS = [
  (0, 0, 0, 0, 0, 0, 0, 0, 0),
  (0, 0, 0, 0, 1, 1, 1, 1, 1),
  (0, 0, 0, 1, 2, 2, 2, 2, 2),
  (3, 0, 0, 0, 0, 0, 0, 0, 0),
]
SALTS = [b"", b"", b"", b"tenant"]
BUDGETS = st.builds(
  Budget,
  capacity_bytes=st.sampled_from([25, 40, 60, 1000, 0]),
  slot_bytes=st.sampled_from([3, 7, 0]),
  page_bytes=st.sampled_from([2, 5, 0]),
  slots=st.sampled_from([None, 1, 3, 6]),
  pages=st.sampled_from([None, 4, 8, 16]),
  entries=st.sampled_from([1000, 3, 1]),
)


class Running:
  """A request between admission and insertion."""

  def __init__(self, salt, tokens, match, pin, lease):
    self.salt, self.tokens = salt, tokens
    self.match, self.pin, self.lease = match, pin, lease


class Schedule:
  """Requests come and go while entries are evicted under them."""

  def __init__(self, budget, eviction, rng):
    self.index = PrefixIndex(budget, eviction)
    self.naive = NaiveIndex(budget, CHUNK, eviction == "lru")
    self.rng = rng
    self.running: list[Running] = []
    self.gone = []

  def step(self):
    """Does one thing that makes sense at this point, and compares."""
    actions = [self.look_up, self.admit, self.admit, self.admit]
    if self.running:
      actions += [self.finish, self.finish, self.finish, self.abort]
      actions += [self.refuse]
    if self.naive.prompts:
      actions += [self.evict]
    if self.rng.random() < 0.03:
      actions = [self.clear]
    self.rng.choice(actions)()
    self.agree()
    self.pinned_is_found()

  def prompt(self):
    """A salt and a prompt."""
    text = self.rng.choice(TEXTS)
    return self.rng.choice(SALTS), text[: self.rng.randint(0, len(text))]

  def look_up(self):
    salt, tokens = self.prompt()
    limit = self.rng.choice([None, None, 0, 1, 2, 3, 4])
    touch = self.rng.random() < 0.5
    blocks, tail = token_blocks(tokens, CHUNK)
    found = self.index.match(blocks, tail, salt=salt, limit=limit, touch=touch)
    self.expect_match(found, salt, tokens, limit)
    if touch:
      self.naive.touch(salt, tokens, limit)

  def expect_match(self, found, salt, tokens, limit):
    tokens_, blocks_, resume, slot, pages = self.naive.match(
      salt, tokens, limit
    )
    assert found.overlap_tokens == tokens_
    assert found.overlap_blocks == blocks_
    assert (found.resume_blocks, found.slot) == (resume, slot)
    assert found.pages == pages
    assert (found.reason == "no_overlap") == (blocks_ == 0)
    assert (found.reason == "complete") == (0 < blocks_ == resume)

  def admit(self):
    """Match, pin what is resumed from, reserve; undone if there is no room."""
    salt, tokens = self.prompt()
    slots = self.rng.randint(0, 3)
    blocks, tail = token_blocks(tokens, CHUNK)
    match = self.index.match(blocks, tail, salt=salt)
    self.naive.touch(salt, tokens, None)
    pin = self.index.pin(blocks, match.resume_blocks, salt=salt)
    resumed = tokens[: match.resume_blocks * CHUNK]
    pinned = Pinned(salt, resumed, match.resume_blocks > 0, pin)
    self.naive.pins.append(pinned)
    lease = self.reserve(slots, len(blocks) - match.resume_blocks)
    if lease is None:
      self.index.unpin(pin)
      self.naive.pins.remove(pinned)
      self.naive.sweep()
    else:
      self.running.append(Running(salt, tokens, match, pinned, lease))

  def reserve(self, slots, pages):
    """Reserves on both sides, or sees that refusing has changed nothing."""
    if not self.naive.can_reserve(slots, pages):
      before = self.dump()
      with pytest.raises(CapacityError):
        self.index.reserve(slots, pages)
      assert self.dump() == before
      return None
    self.naive.reserve(slots, pages)
    in_tree = set(self.naive.slots.values()), set(self.naive.pages.values())
    lease = self.index.reserve(slots, pages)
    assert len(set(lease.slots)) == slots and len(set(lease.pages)) == pages
    assert not set(lease.slots) & (in_tree[0] | self.naive.leased_slots)
    assert not set(lease.pages) & (in_tree[1] | self.naive.leased_pages)
    self.naive.leased_slots |= set(lease.slots)
    self.naive.leased_pages |= set(lease.pages)
    return lease

  def dump(self):
    """Everything that a refused call might have changed."""
    index = self.index
    prompts = [(p.salt, p.tokens) for p in self.naive.prompts]
    return (
      index.stats,
      [(e, e.blocks, e.tail, set(e.claims)) for e in index.entries],
      [
        index.match(*token_blocks(t, CHUNK), salt=s, touch=False)
        for s, t in prompts
      ],
    )

  def finish(self):
    """Inserts a running request, with any captures, claims and predecessor."""
    request = self.take()
    blocks, tail = token_blocks(request.tokens, CHUNK)
    depths = list(range(1, len(blocks) + 1))
    self.rng.shuffle(depths)
    slots = dict(zip(depths, request.lease.slots))
    if request.match.resume_blocks and self.rng.random() < 0.5:
      slots[request.match.resume_blocks] = request.match.slot
    unused = tuple(s for s in request.lease.slots if s not in slots.values())
    pages = (*request.match.pages, *request.lease.pages)
    self.rng.shuffle(depths)
    claim = depths[: self.rng.randint(0, len(depths))]
    old = [None, *self.naive.prompts, *self.gone[-1:]]
    replace = self.rng.choice([None, self.rng.choice(old)])
    naive = self.naive.insert(
      request.salt, request.tokens, pages, slots, claim, replace
    )
    done = self.index.insert(
      blocks,
      tail,
      pages,
      slots,
      salt=request.salt,
      claim=claim,
      replace=replace.handle if replace else None,
    )
    if naive[0].handle is None:
      naive[0].handle = done.entry
    assert done.entry is naive[0].handle
    assert done.pages == naive[1] and done.slots == naive[2]
    assert set(done.freed_pages) == naive[3]
    assert set(done.freed_slots) == naive[4]
    if replace and replace not in self.naive.prompts:
      self.gone.append(replace)
    self.index.free(slots=unused)
    self.naive.leased_slots -= set(unused)
    self.release(request)

  def abort(self):
    request = self.take()
    self.index.free(*request.lease)
    self.naive.leased_slots -= set(request.lease.slots)
    self.naive.leased_pages -= set(request.lease.pages)
    self.release(request)

  def take(self):
    return self.running.pop(self.rng.randrange(len(self.running)))

  def release(self, request):
    self.index.unpin(request.pin.handle)
    self.naive.pins.remove(request.pin)
    self.naive.sweep()
    before = self.dump()
    with pytest.raises(ValueError, match="not open"):
      self.index.unpin(request.pin.handle)
    for kind in ("slots", "pages"):
      numbers = getattr(request.lease, kind)
      if numbers:
        with pytest.raises(ValueError, match="not leased"):
          self.index.free(**{kind: numbers[:1]})
    assert self.dump() == before

  def refuse(self):
    """Insertions that are wrong in one way each change nothing."""
    request = self.rng.choice(self.running)
    blocks, tail = token_blocks(request.tokens, CHUNK)
    pages = (*request.match.pages, *request.lease.pages)
    wrong = [
      (blocks, (*pages, 0), {}),
      (blocks, pages, {len(blocks) + 1: 0}),
      (blocks, pages, {0: 0}),
    ]
    if blocks:
      wrong.append(((*blocks, b"1234"), (*pages, 0), {}))
      wrong.append((blocks, (*pages[:-1], 10**6), {}))
      wrong.append((blocks, pages, {len(blocks): 10**6}))
    if len(request.lease.pages) > 1:
      wrong.append((blocks, (*pages[:-1], pages[-2]), {}))
    if len(blocks) > 1 and request.lease.slots:
      slot = request.lease.slots[0]
      wrong.append((blocks, pages, {1: slot, 2: slot}))
    before = self.dump()
    for keys, numbers, slots in wrong:
      with pytest.raises(ValueError):
        self.index.insert(keys, tail, numbers, slots, salt=request.salt)
    assert self.dump() == before

  def evict(self):
    prompt = self.rng.choice(self.naive.prompts)
    self.index.evict(prompt.handle)
    self.naive.remove(prompt)
    self.gone.append(prompt)
    with pytest.raises(ValueError, match="not stored"):
      self.index.evict(prompt.handle)

  def clear(self):
    self.index.clear()
    self.naive.prompts.clear()
    self.naive.sweep()

  def agree(self):
    index, naive = self.index, self.naive
    index.check()
    assert (index.held_slots, index.held_pages) == naive.held()
    assert index.held_bytes == index.budget.bytes_of(*naive.held())
    assert naive.fits(*naive.held())
    assert list(index.entries) == [p.handle for p in naive.prompts]
    assert [set(e.claims) for e in index.entries] == [
      p.claims for p in naive.prompts
    ]
    assert len(index) == len(naive.prompts)
    assert index.evictions == naive.evictions

  def pinned_is_found(self):
    for request in self.running:
      depth = request.match.resume_blocks
      blocks, _ = token_blocks(request.pin.tokens, CHUNK)
      found = self.index.match(blocks, salt=request.salt, touch=False)
      assert found.resume_blocks == depth
      assert found.slot == request.match.slot
      assert found.pages == request.match.pages

  def end(self):
    """Ends all requests and drops all entries: nothing is held any more."""
    while self.running:
      self.abort()
    self.clear()
    self.agree()


@given(
  budget=BUDGETS,
  eviction=st.sampled_from(["fifo", "lru"]),
  seed=st.integers(0, 2**32 - 1),
  steps=st.integers(1, 60),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_schedule_agrees_with_the_naive_index(
  budget, eviction, seed, steps
):
  schedule = Schedule(budget, eviction, random.Random(seed))
  for _ in range(steps):
    schedule.step()
  schedule.end()
  assert schedule.index.held_slots == schedule.index.held_pages == 0
