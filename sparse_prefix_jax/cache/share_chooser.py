"""Which share of a capacity states should have: that of an undivided one.

Beside the real store runs a second one, without limits on slots or pages: it
sees the same prompts with the same placements, holds nothing but numbers, and
says how it would have divided the same bytes. Where states are weighed it
weighs for itself: what a divided store captures is what it had slots for.
"""

import collections
import dataclasses

from sparse_prefix_jax.cache.divided_capacity import PERIOD, DividedCapacity
from sparse_prefix_jax.cache.index import CapacityError, Eviction, PrefixIndex
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.placement import PlacementPolicy, Planner

LEAD = 10
"""Requests from a choice to its move: meanwhile its programs are compiled."""

PATIENCE = 8
"""Periods in a row after which a share that was only a bit closer is taken."""


def _smooth(mean: float, new: float) -> float:
  """What is wanted over the last periods."""
  return mean + 0.3 * (new - mean)


def _used_by_states(index: PrefixIndex) -> float:
  """The share of states in what is held; of all, where no slot more fits.

  What is left then is too few bytes for a slot, but some for pages.
  """
  slot, held = index.budget.slot_bytes, index.held_bytes
  capacity = index.budget.capacity_bytes
  full = capacity - held < slot
  return index.held_slots * slot / (capacity if full else held)


def _clearly_closer(there: float, here: float, wanted: float) -> bool:
  """Whether another share is so much closer to what is wanted that it moves.

  A move copies the whole capacity and costs states. What is wanted lies between
  two shares as a rule, and would be followed to and fro.

  >>> _clearly_closer(0.04, here=0.08, wanted=0.055)
  False
  >>> _clearly_closer(0.04, here=0.08, wanted=0.045)
  True
  """
  closer = abs(wanted - here) - abs(wanted - there)
  return closer > 0.6 * abs(there - here)


class ShareChooser:
  """Follows a store and chooses a share every `PERIOD` requests.

  A choice takes effect `LEAD` requests after it was made. Choices depend on the
  requests alone, never on a clock, so a simulation makes the same.

  Args:
    store: Which it follows.
    divided: How its capacity may be divided.
    eviction: Its eviction rule.

  Attributes:
    divided: How the capacity may be divided.
    share: What the store has now.
    chosen: What it should have a period from now.
    due: What it should have now.
    moves: How many moves there were.
    moved_bytes: What they copied.
  """

  def __init__(
    self, store: PrefixStore, divided: DividedCapacity, eviction: Eviction
  ) -> None:
    """Follows nothing yet."""
    self.divided = divided
    self.share = self.chosen = self.due = divided.first
    self.moves = self.moved_bytes = 0
    self._usable = divided.usable
    self._waiting = collections.deque[tuple[Request, bool]]()
    self._requests = self._tokens = 0
    self._sum = 0.0
    self._mean: float | None = None
    self._closest, self._periods = divided.first, 0
    self._placed_by = store.planner
    undivided = dataclasses.replace(
      store.index.budget, slots=None, pages=None, remembered_bytes=0
    )
    chunk = store.chunk
    self._weighs = store.planner.worth is not None
    # By others it places nothing: each request names what the real one keeps.
    named = Planner(PlacementPolicy("no_cache", chunk=chunk), depths=2)
    planner = store.planner.fresh() if self._weighs else named
    self._shadow = PrefixStore(
      undivided, planner, chunk=chunk, eviction=eviction
    )

  @property
  def learned_bytes(self) -> int:
    """Host memory of what it has learned."""
    return self._shadow.learned_bytes

  def follow(self, running: Running) -> None:
    """Sees a prompt that was placed, or a decoded sequence that ends."""
    opened = not running.decoded
    weighed = self._weighs and opened
    request = self._prompt(running) if weighed else self._turn(running)
    self._waiting.append((request, opened))
    if len(self._waiting) > PERIOD:  # Programs may fail again and again.
      self.catch_up()

  def refused(self, request: Request) -> None:
    """Sees a prompt that the store has no room for; undivided it may fit."""
    if not self._weighs:
      positions = self._placed_by.positions(request.length)
      request = dataclasses.replace(
        request,
        anchors=tuple(sorted({*request.anchors, *positions})),
        placed=False,
      )
    self._waiting.append((request, True))
    # Nothing is dispatched for it: there is nothing to wait for.
    self.catch_up()

  def catch_up(self) -> None:
    """Serves what was seen; whoever called may be waiting for a device."""
    while self._waiting:
      request, opened = self._waiting.popleft()
      used = self._serve(request)
      if opened:
        self._count(request.length, used)

  def _prompt(self, running: Running) -> Request:
    """A prompt that names where its tokens say that it will be left.

    The second store remembers no entries, from which it could learn that.
    """
    request, chunk = running.request, self._shadow.chunk
    cue = running.features.cue if running.features else 0
    told = cue // chunk * chunk
    if not request.placed or not 0 < told < request.length:
      return request
    anchors = tuple(sorted({*request.anchors, told}))
    return dataclasses.replace(request, anchors=anchors)

  def _turn(self, running: Running) -> Request:
    """A sequence so far, with the positions that the real store keeps.

    Where states are weighed its prompt was seen before, and only its end joins.
    """
    chunk = self._shadow.chunk
    kept = set() if self._weighs else {*running.kept, *running.captured}
    if running.decoded:
      kept.add(running.length // chunk * chunk)
    return Request(
      length=running.length,
      blocks=tuple(running.blocks),
      anchors=tuple(sorted(kept - {0})),
      placed=False,
      observed=running.decoded > 0,
      salt=running.request.salt,
    )

  def _serve(self, request: Request) -> float | None:
    """One whole life in the undivided store.

    Returns:
      The share that states had of what was held meanwhile: the request's own
      slots and pages take part. None for what never fits, which is skipped.
    """
    try:
      (running,) = self._shadow.open([request])
    except CapacityError:
      return None
    try:
      segment = self._shadow.next_segment(running)
      if segment is not None:
        self._shadow.catch_up()
        self._shadow.commit(running, segment)
      used = _used_by_states(self._shadow.index)
      self._shadow.close(running)
    except BaseException:
      self._shadow.drop(running)
      raise
    return used

  def _count(self, length: int, used: float | None) -> None:
    """One more request was seen; sometimes a share is chosen, or due.

    Long prompts count more: it is tokens that a share should save.
    """
    self._requests += 1
    if used is not None:
      self._tokens += length
      self._sum += length * used
    if self._requests == PERIOD - LEAD and self._tokens:
      mean = self._sum / self._tokens
      self._mean = mean if self._mean is None else _smooth(self._mean, mean)
      self.chosen = self._choice(self._mean)
    if self._requests == PERIOD:
      self.due = self.chosen
      self._requests, self._tokens, self._sum = 0, 0, 0.0

  def _choice(self, wanted: float) -> float:
    """The share to have next: the closest, once that is clear or has lasted.

    Shares are compared as what they come to in whole slots: of few, a seventh
    of the bytes may be a ninth.
    """
    given = {share: self.divided.given(share) for share in self._usable}
    closest = min(given, key=lambda share: abs(given[share] - wanted))
    self._periods = self._periods + 1 if closest == self._closest else 1
    self._closest = closest
    here = self.divided.given(self.share)
    if self._periods >= PATIENCE:
      return closest
    clear = _clearly_closer(given[closest], here, wanted)
    return closest if clear else self.share

  def flush(self) -> None:
    """What was stored is gone, here as in the store."""
    self.catch_up()
    self._shadow.flush()

  def exclude(self, share: float) -> None:
    """Never takes a share again: its programs gave other bits."""
    self._usable = tuple(s for s in self._usable if s != share)
    self.chosen = self.due = self.share

  def moved(self, share: float, copied: int) -> None:
    """The store has another share now, after so many bytes were copied."""
    self.share = share
    self.moves += 1
    self.moved_bytes += copied
