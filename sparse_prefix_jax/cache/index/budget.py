"""What may be held: one byte budget for state slots and key/value pages.

How many of each exist physically may be limited as well.
"""

import dataclasses
import numbers
from typing import NamedTuple

_UNBOUNDED = 2**31 - 1


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
    remembered_bytes: bytes of host memory for prompts that are remembered:
      they hold nothing on the device, so the capacity does not bound them.
    learned_bytes: bytes of host memory for what a placement that weighs states
      remembers of prefixes, its follower of shares as many again.

  Raises:
    ValueError: a size or limit that is negative or no integer.

  >>> Budget(capacity_bytes=100, slot_bytes=30, page_bytes=10).fits(3, 1)
  True
  """

  capacity_bytes: int
  slot_bytes: int
  page_bytes: int
  slots: int | None = None
  pages: int | None = None
  remembered_bytes: int = 64 << 20
  learned_bytes: int = 64 << 20

  def __post_init__(self) -> None:
    """Refuses what could never hold anything sensible."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is None and field.name in ("slots", "pages"):
        continue
      if not isinstance(value, numbers.Integral) or int(value) < 0:
        raise ValueError(
          f"budget: {field.name} must be an integer of at least 0, got "
          f"{value!r}."
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

  def most_pages(self, slots: int) -> int:
    """How many pages may be held beside so many slots, at most."""
    left = self.capacity_bytes - self.slot_bytes * slots
    room = left // self.page_bytes if self.page_bytes else _UNBOUNDED
    return max(0, min(room, _UNBOUNDED if self.pages is None else self.pages))

  def shortage(self, tokens: int, slots: int, pages: int) -> CapacityError:
    """What to raise of a sequence that could never be held.

    Args:
      tokens: Its length.
      slots: That it needs.
      pages: That it needs.
    """
    return CapacityError(
      f"a sequence of {tokens} tokens needs {slots} states and {pages} pages, "
      f"{self.bytes_of(slots, pages)} bytes; the cache holds {self.slots} "
      f"states and {self.pages} pages in {self.capacity_bytes} bytes."
    )
