"""Which entry goes first when room is needed.

A policy orders entries and knows nothing of slots, pages or bytes. All share
one interface, so that a new one is a class and a line in `POLICIES`.
"""

import collections
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from .tree import Entry


@runtime_checkable
class EvictionPolicy(Protocol):
  """Order of eviction over the stored entries, first victim first."""

  def add(self, entry: Entry) -> None:
    """Takes in an entry that was just inserted, or inserted once more."""

  def touch(self, entry: Entry) -> None:
    """Notes that a request resumed from what the entry holds."""

  def remove(self, entry: Entry) -> None:
    """Forgets an entry."""

  def victim(self, in_use: Callable[[Entry], bool]) -> Entry:
    """The next entry to evict, those in use last; there must be one."""
    ...

  def __iter__(self) -> Iterator[Entry]:
    """All entries, oldest first."""
    ...

  def __len__(self) -> int:
    """How many entries there are."""
    ...

  def __contains__(self, entry: object) -> bool:
    """Whether the entry is stored."""
    ...


class Fifo:
  """First in, first out: the entry that was inserted longest ago goes first.

  Inserting an entry once more makes it the newest; a hit changes nothing.
  """

  def __init__(self) -> None:
    """Starts empty."""
    # A plain dict would walk over its deleted front at every look-up.
    self._order: collections.OrderedDict[Entry, None] = (
      collections.OrderedDict()
    )

  def add(self, entry: Entry) -> None:
    """Makes the entry the newest."""
    self._order[entry] = None
    self._order.move_to_end(entry)

  def touch(self, entry: Entry) -> None:
    """Leaves the order of arrival as it is."""

  def remove(self, entry: Entry) -> None:
    """Forgets the entry; KeyError if it is not stored."""
    del self._order[entry]

  def victim(self, in_use: Callable[[Entry], bool]) -> Entry:
    """The oldest entry that is not in use; the oldest if all are."""
    idle = (entry for entry in self._order if not in_use(entry))
    return next(idle, next(iter(self._order)))

  def __iter__(self) -> Iterator[Entry]:
    """All entries, oldest first."""
    return iter(self._order)

  def __len__(self) -> int:
    """How many entries there are."""
    return len(self._order)

  def __contains__(self, entry: object) -> bool:
    """Whether the entry is stored."""
    return entry in self._order


class Lru(Fifo):
  """Least recently used: the entry not used for longest goes first."""

  def touch(self, entry: Entry) -> None:
    """Makes the entry the newest."""
    self._order.move_to_end(entry)


POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"fifo": Fifo, "lru": Lru}


def make_policy(name: str) -> EvictionPolicy:
  """Returns a new, empty policy.

  Raises:
    ValueError: there is no policy of that name.

  >>> len(make_policy("lru"))
  0
  """
  if name not in POLICIES:
    known = ", ".join(sorted(POLICIES))
    raise ValueError(f"eviction must be one of {known}, got {name!r}.")
  return POLICIES[name]()
