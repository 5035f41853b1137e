"""One capacity in bytes for states and pages, and how it is divided.

Slots and pages are arrays of two shapes, so a capacity is divided when they are
allocated. The shape of a pool is the shape of its programs, so shares come from
a few values; which of them serves best depends on the requests, and is found by
following what an undivided capacity would hold.
"""

import dataclasses
from typing import Protocol, runtime_checkable

from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import Running

SHARES = (0.02, 0.04, 0.08, 0.14, 0.22, 0.3, 0.4, 0.5)
"""Shares of a capacity that states may have: each has programs of its own."""

SHARES_OF_FEW = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.94)
"""Those of few states: the lower ones would not be the slots of a sequence."""

_FEW = 10
"""States, of which a half are too few: a sequence that runs takes two."""

PERIOD = 50
"""Requests between two moves."""

REMEMBERED = 192 << 20
"""Bytes of host memory for what is remembered, unless others are asked for."""

_FIRST, _HALF = 0.4, 0.5


def host_memory(remembered: int, *, weighs: bool) -> dict[str, int]:
  """Divides host memory among those who remember, as fields of a budget.

  Args:
    remembered: Bytes for all of them.
    weighs: Whether the placement weighs states: then prompts have a third, and
      what states are worth has one, in the store and in what follows it.

  >>> host_memory(900, weighs=True)
  {'remembered_bytes': 300, 'learned_bytes': 300}
  >>> host_memory(900, weighs=False)
  {'remembered_bytes': 900, 'learned_bytes': 0}
  """
  if not weighs:
    return {"remembered_bytes": remembered, "learned_bytes": 0}
  third = remembered // 3
  return {"remembered_bytes": third, "learned_bytes": third}


@dataclasses.dataclass(frozen=True)
class DividedCapacity:
  """How a capacity may be divided.

  Attributes:
    capacity: Bytes for both kinds.
    slot_bytes: Bytes of a slot, 0 where nothing is kept in slots.
    page_bytes: Bytes of a page, 0 without attention.
    longest: Chunks of the longest sequence.
    probed: Pages that a probe of the programs takes: chunks of the largest.

  >>> DividedCapacity(1000, slot_bytes=100, page_bytes=10, longest=8).split(0.5)
  (5, 50)
  """

  capacity: int
  slot_bytes: int
  page_bytes: int
  longest: int
  probed: int = 16

  @property
  def spare(self) -> tuple[int, int]:
    """Slots and pages that a probe before and after a move takes."""
    return 2, self.probed

  def split(self, share: float) -> tuple[int, int]:
    """How many slots and pages fit, with this share of the bytes for slots.

    A model with one kind of layers gives all to what it has.
    """
    if self.page_bytes == 0:  # Pages are names then: as many as could be used.
      slots = self.capacity // self.slot_bytes
      return slots, max(slots, 1) * self.longest
    if self.slot_bytes == 0:
      pages = self.capacity // self.page_bytes
      return max(pages, 2), pages
    slots = int(self.capacity * share) // self.slot_bytes
    rest = self.capacity - slots * self.slot_bytes
    return slots, rest // self.page_bytes

  @property
  def undivided(self) -> float | None:
    """What states have where one kind of layers takes all; None for both.

    >>> DividedCapacity(1000, 100, 0, longest=8).undivided
    1.0
    """
    if self.slot_bytes and self.page_bytes:
      return None
    return 1.0 if self.slot_bytes else 0.0

  def given(self, share: float) -> float:
    """What a share comes to, in whole slots.

    >>> DividedCapacity(1000, 150, 10, longest=8).given(0.5)
    0.45
    """
    slots, _ = self.split(share)
    return slots * self.slot_bytes / self.capacity

  @property
  def usable(self) -> tuple[float, ...]:
    """The shares under which one of the longest sequences can run.

    Where there are none, those under which any can: two slots and a page. What
    fits is then a matter of the share, as it is of any fixed one. Shares that
    come to as many slots are one. Where one kind of layers takes all, one share
    stands for them.

    >>> DividedCapacity(10_000, 100, 10, 8).usable
    (0.02, 0.04, 0.08, 0.14, 0.22, 0.3, 0.4, 0.5)
    >>> DividedCapacity(1_000, 100, 10, 60).usable
    (0.22, 0.3, 0.4)
    >>> DividedCapacity(600, 100, 1, 60).usable
    (0.4, 0.5, 0.7, 0.88)
    """
    if self.undivided is not None:
      return (_FIRST,)
    few = self.capacity < _FEW * self.slot_bytes
    shares = SHARES_OF_FEW if few else SHARES
    room = {self.split(share): share for share in reversed(shares)}
    runs = {
      share: pages
      for (slots, pages), share in reversed(room.items())
      if slots >= 2 and pages
    }
    longest = [share for share in runs if runs[share] >= self.longest]
    return tuple(longest or runs or [_HALF])

  @property
  def first(self) -> float:
    """The share to begin with: beside a sequence that runs a state has room.

    >>> DividedCapacity(600, 100, 1, 60).first
    0.5
    """
    keeps = [share for share in self.usable if self.split(share)[0] > 2]
    shares = keeps or self.usable
    return min(shares, key=lambda share: abs(share - _FIRST))


@runtime_checkable
class ShareFollower(Protocol):
  """What chooses how a capacity is divided, as `ShareChooser` does.

  Attributes:
    share: Share of the capacity that states have now.
    moves: How often it changed.
    moved_bytes: Bytes copied for that.
  """

  share: float
  moves: int
  moved_bytes: int

  @property
  def learned_bytes(self) -> int:
    """Host memory of what it has learned."""
    ...

  def follow(self, running: Running) -> None:
    """Sees a prompt that was placed, or a decoded sequence that ends."""

  def catch_up(self) -> None:
    """Does what the prompts that it has seen ask for."""

  def refused(self, request: Request) -> None:
    """Sees a prompt that the store has no room for."""

  def flush(self) -> None:
    """What was stored is gone."""
