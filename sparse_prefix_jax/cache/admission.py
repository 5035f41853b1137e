"""How a wave begins: pinned, leased, observed, placed; or nothing of it.

Only `cache/store.py` calls this module.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

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
from sparse_prefix_jax.placement import Planner, Prompt

NUMBERS = itertools.count()
"""Numbers of sequences, over all stores of a process."""


class _Held(NamedTuple):
  """What a wave holds before its sequences exist."""

  matches: list[Match]
  pins: list[Pin]
  lease: Lease


class Admission:
  """Begins sequences over one index and one planner.

  Args:
    index: Matched, pinned and leased from.
    planner: Observes overlaps and places states.
    chunk: Tokens of a chunk, c.
    stores: Whether anything outlives its sequence.
  """

  def __init__(
    self, index: PrefixIndex, planner: Planner, *, chunk: int, stores: bool
  ) -> None:
    """Begins nothing yet."""
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
    begun: list[Running] = []
    try:
      begun += self._sequences(requests, held)
      for running in begun:
        self._observe(running)
      for running, waited_for in zip(begun, shared):
        self._place(running, waited_for)
    except BaseException:
      self._abandon(held, begun)
      raise
    return begun

  def _hold_or_start_cold(self, requests: Sequence[Request]) -> _Held:
    """Pins and leases what the wave must have, with its matches or without."""
    matches = [self.match(request) for request in requests]
    try:
      return self._hold(requests, matches)
    except CapacityError:
      if not any(match.resume_blocks for match in matches):
        raise
    return self._hold(requests, [_cold(match) for match in matches])

  def _hold(self, requests: Sequence[Request], matches: list[Match]) -> _Held:
    """All pins and one lease, or nothing."""
    pins: list[Pin] = []
    try:
      for request, match in zip(requests, matches):
        pins.append(self._index.pin(match.node, salt=request.salt))
      pages = sum(self._fresh_pages(r, m) for r, m in zip(requests, matches))
      return _Held(matches, pins, self._index.reserve(2 * len(requests), pages))
    except BaseException:
      for pin in pins:
        self._index.unpin(pin)
      raise

  def _fresh_pages(self, request: Request, match: Match) -> int:
    """Pages that a request computes anew."""
    return -(-request.length // self._chunk) - match.resume_blocks

  def _sequences(
    self, requests: Sequence[Request], held: _Held
  ) -> Iterable[Running]:
    """A sequence per request, each with its part of what the wave holds."""
    slots, pages = iter(held.lease.slots), iter(held.lease.pages)
    for request, match, pin in zip(requests, held.matches, held.pins):
      fresh = itertools.islice(pages, self._fresh_pages(request, match))
      resumed = match.resume_blocks * self._chunk
      yield Running(
        number=next(NUMBERS),
        request=request,
        match=match,
        tokens=TokenBuffer(request.ids),
        length=request.length,
        blocks=list(request.blocks),
        pages=[*match.pages, *fresh],
        running_slot=next(slots),
        own_slot=next(slots),
        lattice_slot=match.slot,
        carry_slot=match.slot,
        resumed=resumed,
        computed=resumed,
        stored=match.resume_blocks,
        pin=pin,
      )

  def _observe(self, running: Running) -> None:
    """Lets the placement learn from the overlap of a request."""
    request, match = running.request, running.match
    overlap = min(match.overlap_tokens, request.length - 1)
    prompt = Prompt(request.ids, request.salt) if request.ids.size else None
    running.features = self._planner.describe(
      request.length, overlap, match.features, prompt
    )
    self._planner.observe(
      overlap, entry=running.features, matched=match.features, prompt=prompt
    )

  def _place(self, running: Running, shared: Collection[int]) -> None:
    """Chooses where the prompt keeps states, and leases slots for new ones.

    The most useful first, where there is not room for all: those that another
    request waits for, then the deepest.
    """
    request = running.request
    kept = {*request.anchors} if self._stores else set()
    if request.placed:
      kept |= {*self._planner.positions(request.length, running.features)}
    running.kept = tuple(sorted(kept))
    ahead = [p for p in kept | {*shared} if p > running.computed]
    ahead = [p for p in ahead if not self._stored_at(running, p)]
    ahead.sort(key=lambda p: (p not in shared, -p))
    slots = self._lease_up_to(len(ahead))
    running.captures = dict(zip(ahead, slots))
    running.captured = tuple(sorted(running.captures))

  def _stored_at(self, running: Running, position: int) -> bool:
    """Whether the tree holds a state there, beyond where it may be resumed."""
    deepest = running.match.deepest
    depth = position // self._chunk
    if deepest is None or deepest.depth < depth:
      return False
    return deepest.at_depth(depth).state is not None

  def _lease_up_to(self, wanted: int) -> tuple[int, ...]:
    """As many slots as the capacity has room for."""
    while wanted:
      try:
        return self._index.reserve(wanted, 0).slots
      except CapacityError:
        wanted -= 1
    return ()

  def _abandon(self, held: _Held, begun: Sequence[Running]) -> None:
    """Gives back all that a wave held, whoever of it has begun."""
    captures = [s for running in begun for s in running.captures.values()]
    self._index.free([*held.lease.slots, *captures], held.lease.pages)
    for pin in held.pins:
      self._index.unpin(pin)


def _cold(match: Match) -> Match:
  """A match given up: its overlap stays as it was seen, to be learned from."""
  if not match.resume_blocks:
    return match
  return match._replace(
    resume_blocks=0, slot=NO_SLOT, pages=(), node=None, reason=Reason.NO_ROOM
  )
