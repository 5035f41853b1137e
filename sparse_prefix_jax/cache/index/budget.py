"""What may be held, and which numbers of slots and pages are free.

State slots and key/value pages come out of one byte budget; how many of each
exist physically may be limited as well. Numbers are abstract: the index never
sees an array, and the pools never see a token.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple


class CapacityError(ValueError):
  """A reservation that no eviction could have made room for."""


class Lease(NamedTuple):
  """Numbers reserved for one request: not yet in the tree, but held.

  Attributes:
    slots: numbers of state slots.
    pages: numbers of key/value pages.
  """

  slots: tuple[int, ...]
  pages: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much an index may hold: bytes in all, and each kind's number.

  What is held, `slot_bytes * slots + page_bytes * pages`, never exceeds
  `capacity_bytes`, and neither count exceeds its own limit.

  Attributes:
    capacity_bytes: bytes in all.
    slot_bytes: bytes of one state checkpoint, all recurrent layers together.
    page_bytes: bytes of the keys and values of one chunk, all layers together.
    slots: how many slots exist; None: as many as the bytes allow.
    pages: how many pages exist; None: as many as the bytes allow.
    entries: how many entries are kept. An entry that shares all its pages
      holds no byte of its own, so bytes alone do not bound their number.

  Raises:
    ValueError: a negative size or limit, or no entry allowed.

  >>> Budget(capacity_bytes=100, slot_bytes=30, page_bytes=10).fits(3, 1)
  True
  """

  capacity_bytes: int
  slot_bytes: int
  page_bytes: int
  slots: int | None = None
  pages: int | None = None
  entries: int = 1 << 20

  def __post_init__(self) -> None:
    """Refuses what could never hold anything sensible."""
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), int(field.name == "entries")
      if value is not None and value < least:
        raise ValueError(
          f"budget: {field.name} must be at least {least}, got {value}."
        )

  def bytes_of(self, slots: int, pages: int) -> int:
    """Bytes of so many slots and pages."""
    return self.slot_bytes * slots + self.page_bytes * pages

  def fits(self, slots: int, pages: int) -> bool:
    """Whether so many slots and pages may be held at once."""
    return (
      self.bytes_of(slots, pages) <= self.capacity_bytes
      and (self.slots is None or slots <= self.slots)
      and (self.pages is None or pages <= self.pages)
    )


class Numbers:
  """The numbers 0, 1, 2, ... of one kind: free, leased, or owned by the tree.

  A number that came back is given out before a fresh one, so all numbers ever
  given out are smaller than the most that were held at once.

  Attributes:
    kind: "slot" or "page", for messages.
    leased: numbers that a request reserved and that are not in the tree yet.
    pinned: how many of the tree's numbers a pin protects.
  """

  def __init__(self, kind: str) -> None:
    """Starts with nothing held."""
    self.kind = kind
    self.leased: set[int] = set()
    self.pinned = 0
    self._returned: list[int] = []
    self._fresh = 0

  @property
  def held(self) -> int:
    """How many numbers are leased or owned by the tree."""
    return self._fresh - len(self._returned)

  @property
  def fixed(self) -> int:
    """How many numbers no eviction can free: leased or pinned."""
    return len(self.leased) + self.pinned

  @property
  def free(self) -> tuple[int, ...]:
    """Numbers given out before and free again, the next one last."""
    return tuple(self._returned)

  def lease(self, count: int) -> tuple[int, ...]:
    """Takes `count` free numbers."""
    numbers = tuple(self._take() for _ in range(count))
    self.leased.update(numbers)
    return numbers

  def _take(self) -> int:
    """Takes a number that came back, or else a fresh one."""
    if self._returned:
      return self._returned.pop()
    self._fresh += 1
    return self._fresh - 1

  def adopt(self, number: int) -> int:
    """Passes a leased number into the tree's ownership."""
    self.leased.remove(number)
    return number

  def give_back(self, numbers: Iterable[int]) -> None:
    """Frees numbers that nobody holds any more, leased or owned."""
    for number in numbers:
      self.leased.discard(number)
      self._returned.append(number)

  def require_leased(self, numbers: Iterable[int]) -> None:
    """Raises ValueError unless all are leased and none comes twice."""
    seen: set[int] = set()
    for number in numbers:
      if number in seen or number not in self.leased:
        state = "is named twice" if number in seen else "is not leased"
        raise ValueError(f"{self.kind} {number} {state}.")
      seen.add(number)
