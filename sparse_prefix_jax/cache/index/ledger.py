"""Which numbers of slots and pages are free, leased, or owned by the tree.

Numbers are abstract: the index never sees an array, and the pools never see a
token.
"""

from collections.abc import Iterable, Sequence

from .budget import Budget, CapacityError, Lease
from .results import Renumbering, Shortage


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

  def unheld(self, limit: int) -> tuple[int, ...]:
    """Every number below `limit` that nobody holds."""
    return (*self._returned, *range(self._fresh, limit))

  def lease(self, count: int) -> tuple[int, ...]:
    """Takes `count` free numbers."""
    first = max(len(self._returned) - count, 0)
    again = self._returned[first:][::-1]
    fresh = count - len(again)
    numbers = (*again, *range(self._fresh, self._fresh + fresh))
    del self._returned[first:]
    self._fresh += fresh
    self.leased.update(numbers)
    return numbers

  def adopt(self, number: int) -> int:
    """Passes a leased number into the tree's ownership."""
    self.leased.remove(number)
    return number

  def give_back(self, numbers: Sequence[int]) -> None:
    """Frees numbers that nobody holds any more, leased or owned."""
    self.leased.difference_update(numbers)
    self._returned.extend(numbers)

  def renumbering(self, limit: int) -> dict[int, int]:
    """New numbers below a limit for what is held at or above it; a look.

    Raises:
      ValueError: If more is held than the limit allows.
    """
    if self.held > limit:
      raise ValueError(
        f"{self.held} {self.kind}s are held; they cannot be numbered below "
        f"{limit}."
      )
    free = set(self._returned)
    high = (n for n in range(limit, self._fresh) if n not in free)
    return dict(zip(high, sorted(n for n in free if n < limit)))

  def renumber(self, moved: dict[int, int], limit: int) -> None:
    """Takes new numbers, of `renumbering`, in the place of the old ones."""
    taken = set(moved.values())
    self.leased = {moved.get(number, number) for number in self.leased}
    self._returned = [n for n in self._returned if n < limit and n not in taken]
    self._fresh = min(self._fresh, limit)

  def require_leased(self, numbers: Iterable[int]) -> None:
    """Raises ValueError unless all are leased and none comes twice."""
    seen: set[int] = set()
    for number in numbers:
      if number in seen or number not in self.leased:
        fault = "named twice" if number in seen else "not leased"
        raise ValueError(
          f"{self.kind} {number} is {fault}: only a leased number can be "
          "inserted or freed, and only once."
        )
      seen.add(number)


class Ledger:
  """Slots and pages under one budget.

  Attributes:
    budget: what may be held.
    slots: numbers of state slots.
    pages: numbers of key/value pages.
  """

  def __init__(self, budget: Budget) -> None:
    """Starts with nothing held."""
    self.budget = budget
    self.slots = Numbers("slot")
    self.pages = Numbers("page")

  def has_room(self, slots: int, pages: int) -> bool:
    """Whether so many more can be leased as things stand."""
    return self.budget.fits(self.slots.held + slots, self.pages.held + pages)

  def shortage(self, slots: int, pages: int) -> Shortage:
    """What is missing for so many more: one kind alone, or bytes of both.

    Args:
      slots: To be leased.
      pages: To be leased.
    """
    budget = self.budget
    sizes = budget.slot_bytes, budget.page_bytes
    used = self.slots.held + slots, self.pages.held + pages
    many = used[0] - (used[0] if budget.slots is None else budget.slots)
    few_pages = budget.pages is not None and used[1] > budget.pages
    if few_pages and many <= 0:
      return Shortage(0, sizes[1] or 1, max(used[0], 1), beside=sizes[0])
    if many > 0 and not few_pages:
      return Shortage(1, 0, many)
    if many > 0 or not sizes[0]:
      return Shortage(*sizes, max(many, 1))
    excess = budget.bytes_of(*used) - budget.capacity_bytes
    return Shortage(*sizes, -(-excess // sizes[0]))

  def unheld(self) -> Lease:
    """Numbers of both kinds that nobody holds; nothing is taken.

    Raises:
      ValueError: the budget does not say how many exist.
    """
    slots, pages = self.budget.slots, self.budget.pages
    if slots is None or pages is None:
      raise ValueError("budget: slots and pages must be numbers to list them.")
    return Lease(self.slots.unheld(slots), self.pages.unheld(pages))

  def require_possible(
    self, slots: int, pages: int, budget: Budget | None = None
  ) -> None:
    """Raises CapacityError if even an index without states has no room.

    Args:
      slots: To be leased.
      pages: To be leased.
      budget: Another than today's.

    Raises:
      ValueError: a negative number.
    """
    if slots < 0 or pages < 0:
      raise ValueError(
        "slots and pages to reserve must not be negative, got "
        f"{slots} and {pages}."
      )
    used = self.slots.fixed, self.pages.fixed
    budget = budget or self.budget
    if budget.fits(used[0] + slots, used[1] + pages):
      return
    divided = ""
    if budget.slots is not None and budget.pages is not None:
      divided = f", divided into {budget.slots} slots and {budget.pages} pages"
    raise CapacityError(
      f"cannot reserve {slots} slots and {pages} pages "
      f"({budget.bytes_of(slots, pages)} bytes): running sequences hold "
      f"{used[0]} slots and {used[1]} pages ({budget.bytes_of(*used)} bytes) "
      f"of a capacity of {budget.capacity_bytes} bytes{divided}; release "
      "sequences, or make a larger cache."
    )

  def lease(self, slots: int, pages: int) -> Lease:
    """Takes free numbers; there must be room."""
    return Lease(self.slots.lease(slots), self.pages.lease(pages))

  def free(self, slots: Sequence[int], pages: Sequence[int]) -> None:
    """Gives leased numbers back, or raises ValueError and keeps them all."""
    self.slots.require_leased(slots)
    self.pages.require_leased(pages)
    self.slots.give_back(slots)
    self.pages.give_back(pages)

  def renumbering(self, slots: int, pages: int) -> Renumbering:
    """New numbers below the limits, of both kinds; a look."""
    return Renumbering(
      self.slots.renumbering(slots), self.pages.renumbering(pages)
    )

  def renumber(self, moved: Renumbering, slots: int, pages: int) -> None:
    """Takes the new numbers in the place of the old ones."""
    self.slots.renumber(moved.slots, slots)
    self.pages.renumber(moved.pages, pages)
