"""How a wave begins: pinned, observed, leased, placed; or nothing of it.

Only `cache/store.py` and `cache/store_view.py` call this module.
"""

import itertools
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

from sparse_prefix_jax.cache.expectations import Expectations
from sparse_prefix_jax.cache.index import (
  CapacityError,
  Lease,
  Match,
  Pin,
  PrefixIndex,
  Reason,
)
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import NO_SLOT, Running, TokenBuffer
from sparse_prefix_jax.placement import Features, Planner, Prompt
from sparse_prefix_jax.placement.worth import Visit
from sparse_prefix_jax.whole_numbers import is_whole

SEQUENCE_NUMBERS = itertools.count()
"""Numbers of sequences, over all stores of a process."""


class _Held(NamedTuple):
  """What a wave holds before its sequences exist; there is room for them."""

  matches: list[Match]
  pins: list[Pin]
  slots: int
  pages: int


class _Seen(NamedTuple):
  """The number of a sequence, and what the placement learned from it."""

  number: int
  blocks: list[Hashable]
  features: Features
  visit: Visit | None
  expected_lost: float | None


class Admission:
  """Begins sequences over one index and one planner.

  Args:
    index: Matched, pinned and leased from.
    planner: Observes overlaps and places states.
    chunk: Tokens of a chunk, c.
    stores: Whether anything outlives its sequence.

  Attributes:
    expectations: What the planner expects prompts to lose.
  """

  def __init__(
    self, index: PrefixIndex, planner: Planner, *, chunk: int, stores: bool
  ) -> None:
    """Begins nothing yet."""
    self.expectations = Expectations(planner, chunk)
    self._index, self._planner = index, planner
    self._chunk, self._stores = chunk, stores

  def match(self, request: Request) -> Match:
    """What is stored of a prompt; it resumes before its last token."""
    return self._index.match(
      request.blocks,
      request.tail,
      salt=request.salt,
      limit=(request.length - 1) // self._chunk,
    )

  def begin(
    self, requests: Sequence[Request], shared: Sequence[Collection[int]]
  ) -> list[Running]:
    """Begins a wave as one act, as `PrefixStore.open` says.

    Args:
      requests: Checked.
      shared: Per request, lattice positions that another one waits for.

    Returns:
      The sequences, in the order of the requests.

    Raises:
      CapacityError: If they do not fit; nothing is held then.
    """
    held = self._hold_or_start_cold(requests)
    seen: list[_Seen] = []
    begun: list[Running] = []
    lease = Lease((), ())
    try:
      for request, match in zip(requests, held.matches):
        seen.append(self._observe(request, match))
      offered = [
        self._offer(request, one, waited_for)
        for request, one, waited_for in zip(requests, seen, shared)
      ]
      lease = self._index.reserve(held.slots, held.pages)
      begun += self._sequences(requests, held, lease, seen)
      for running, waited_for, depths in zip(begun, shared, offered):
        self._place(running, waited_for, depths)
    except BaseException:
      self._abandon(held, lease, begun, seen)
      raise
    return begun

  def _hold_or_start_cold(self, requests: Sequence[Request]) -> _Held:
    """Pins what the wave needs, with its matches or without."""
    matches = [self.match(request) for request in requests]
    try:
      return self._hold(requests, matches)
    except CapacityError:
      if not any(match.resume_blocks for match in matches):
        raise
    return self._hold(requests, [_cold(match) for match in matches])

  def _hold(self, requests: Sequence[Request], matches: list[Match]) -> _Held:
    """All pins, and room for what must be leased beside them; or nothing."""
    pins: list[Pin] = []
    try:
      for request, match in zip(requests, matches):
        pins.append(self._index.pin(match.node, salt=request.salt))
      pages = sum(self._fresh_pages(r, m) for r, m in zip(requests, matches))
      slots = 2 * len(requests)
      self._index.check_room(slots, pages, self._index.budget)
      return _Held(matches, pins, slots, pages)
    except BaseException:
      for pin in pins:
        self._index.unpin(pin)
      raise

  def _fresh_pages(self, request: Request, match: Match) -> int:
    """Pages that a request computes anew."""
    return -(-request.length // self._chunk) - match.resume_blocks

  def _sequences(
    self,
    requests: Sequence[Request],
    held: _Held,
    lease: Lease,
    seen: Sequence[_Seen],
  ) -> Iterable[Running]:
    """A sequence per request, each with its part of what the wave holds."""
    slots, pages = iter(lease.slots), iter(lease.pages)
    for request, match, pin, one in zip(
      requests, held.matches, held.pins, seen
    ):
      fresh = itertools.islice(pages, self._fresh_pages(request, match))
      resumed = match.resume_blocks * self._chunk
      yield Running(
        number=one.number,
        request=request,
        match=match,
        tokens=TokenBuffer(request.ids),
        length=request.length,
        blocks=one.blocks,
        pages=[*match.pages, *fresh],
        running_slot=next(slots),
        own_slot=next(slots),
        lattice_slot=match.slot,
        carry_slot=match.slot,
        resumed=resumed,
        computed=resumed,
        stored=match.resume_blocks,
        pin=pin,
        features=one.features,
        expected_lost=one.expected_lost,
      )

  def _observe(self, request: Request, match: Match) -> _Seen:
    """Lets the placement learn from a request and its overlap."""
    overlap = min(match.overlap_tokens, request.length - 1)
    prompt = Prompt(request.ids, request.salt) if request.ids.size else None
    expected = self.expectations.of(match)
    blocks = match.blocks(request.blocks)
    features = self._planner.describe(
      request.length, overlap, match.features, prompt
    )
    if request.observed:
      number = next(SEQUENCE_NUMBERS)
      return _Seen(number, blocks, features, None, expected)
    self._planner.observe(
      overlap, entry=features, matched=match.features, prompt=prompt
    )
    visit, worth = None, self._index.worth
    if worth is not None:
      whole = (request.length - 1) // self._chunk
      with self._index.asked():
        visit = worth.observe(blocks[:whole], request.salt, match.hashes)
    return _Seen(next(SEQUENCE_NUMBERS), blocks, features, visit, expected)

  def _offer(
    self, request: Request, seen: _Seen, shared: Collection[int]
  ) -> tuple[int, ...]:
    """Offers what the prompt might keep, to be weighed when room is made."""
    worth = self._index.worth
    if worth is None or seen.visit is None:
      return ()
    # What lies at the very end of a prompt is only of use to longer ones.
    end = (request.length - 1) // self._chunk + 1
    named = {p // self._chunk for p in request.anchors} - {end}
    wanted = {p // self._chunk for p in shared} - {end}
    told = {seen.features.cue // self._chunk} - {0, end}
    with self._index.asked():
      return worth.offer(
        seen.visit,
        seen.number,
        anchors=named | told if request.placed else named,
        wanted=wanted if request.placed else wanted | named,
        proposes=request.placed,
      )

  def _place(
    self,
    running: Running,
    shared: Collection[int],
    offered: Collection[int],
  ) -> None:
    """Chooses where the prompt keeps states, and leases slots for new ones.

    The most useful first, where there is not room for all: those that room was
    made for, those that another request waits for, then the deepest.
    """
    accepted = self._accepted(running)
    kept = accepted | self._kept(running)
    running.kept = tuple(sorted(kept))
    offers = (depth * self._chunk for depth in offered)
    running.asked = frozenset(kept.union(shared, offers))
    ahead = [p for p in kept | {*shared} if p > running.computed]
    ahead = [p for p in ahead if not self._stored_at(running, p)]
    ahead.sort(key=lambda p: (p not in accepted, p not in shared, -p))
    slots = self._lease_up_to(len(ahead))
    running.captures = dict(zip(ahead, slots))
    running.captured = tuple(sorted(running.captures))

  def _accepted(self, running: Running) -> set[int]:
    """Positions that were offered and not turned down; none by other rules."""
    worth = self._index.worth
    if worth is None:
      return set()
    with self._index.asked():
      return {d * self._chunk for d in worth.accept(running.number)}

  def _kept(self, running: Running) -> set[int]:
    """Positions that a prompt keeps whatever they are worth.

    Where states are weighed it is the last one, if it is stored already, and an
    anchor at the very end, which the same prompt cannot resume from; or all
    that it names, if it was observed already and is not weighed again.
    """
    request, chunk = running.request, self._chunk
    kept = {*request.anchors} if self._stores else set()
    if self._index.worth is not None and not request.observed:
      last = (request.length - 1) // chunk * chunk
      known = {last} if last and self._stored_at(running, last) else set()
      return known | {p for p in kept if p > last}
    if request.placed and self._index.worth is None:
      kept |= {*self._planner.positions(request.length, running.features)}
      kept |= {d * chunk for d in self._proposed(running)}
    return kept

  def _proposed(self, running: Running) -> Collection[int]:
    """Depths in chunks that the rule of eviction admits besides."""
    if not self._stores:
      return ()
    blocks = running.prompt_length // self._chunk
    proposed = self._index.proposed(running.match, blocks)
    if not isinstance(proposed, Iterable):
      raise ValueError(f"eviction proposes {proposed!r}; it must be depths.")
    depths = [*proposed]
    if not all(
      is_whole(depth) and 0 < int(depth) <= blocks for depth in depths
    ):
      # A state beyond the prompt would be one that nobody has written.
      raise ValueError(
        f"eviction proposes depths {depths!r}; they must be ints of 1 to "
        f"{blocks}, the whole blocks of the prompt."
      )
    return [*map(int, depths)]

  def _stored_at(self, running: Running, position: int) -> bool:
    """Whether the tree holds a state there, beyond where it may be resumed."""
    path, depth = running.match.path, position // self._chunk
    return depth <= len(path) and path[depth - 1].state is not None

  def _lease_up_to(self, wanted: int) -> tuple[int, ...]:
    """As many slots as the capacity has room for."""
    while wanted:
      try:
        return self._index.reserve(wanted, 0).slots
      except CapacityError:
        wanted -= 1
    return ()

  def _abandon(
    self,
    held: _Held,
    lease: Lease,
    begun: Sequence[Running],
    seen: Sequence[_Seen],
  ) -> None:
    """Gives back all that a wave held, whoever of it has begun."""
    captures = [s for running in begun for s in running.captures.values()]
    self._index.free([*lease.slots, *captures], lease.pages)
    for one in seen:
      self._index.withdraw(one.number)
    for pin in held.pins:
      self._index.unpin(pin)


def _cold(match: Match) -> Match:
  """A match given up: its overlap stays as it was seen, to be learned from."""
  if not match.resume_blocks:
    return match
  return match._replace(
    resume_blocks=0, slot=NO_SLOT, pages=(), node=None, reason=Reason.NO_ROOM
  )
