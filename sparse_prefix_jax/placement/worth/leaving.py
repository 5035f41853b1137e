"""Which states leave, the one worth least first: `Leaving`.

What a prompt offers is held as if there were room for all of it, and most of it
leaves again at once: a prompt that shares hundreds of branches offers dozens of
candidates. A state that leaves changes what the next ones above and below it
are worth, and nobody else; so all are weighed once, and those few again.
"""

from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush
from operator import add, truediv

import numpy as np
from jaxtyping import Int64

from sparse_prefix_jax.placement.worth import pages
from sparse_prefix_jax.placement.worth.ages import HORIZONS
from sparse_prefix_jax.placement.worth.flow import LEAST_RATE, worths
from sparse_prefix_jax.placement.worth.table import ROOT, Table

Freed = Callable[[Int64[np.ndarray, "n"]], np.ndarray]
"""What evicting each of some held rows would free, positive."""

_HORIZONS = [*map(float, HORIZONS)]
_STAYS = float("inf")


class Leaving:
  """Held candidates by what they are worth, while some of them leave.

  Nothing else may change them meanwhile, and `finish` is due at the end.

  Args:
    table: Its columns of states, flows and pages are written.
    pinned: Rows that must stay.
    going: Rows that may be released.
    freed: What each would free; None where all free the same.
  """

  def __init__(
    self,
    table: Table,
    *,
    pinned: Collection[int] = (),
    going: Collection[int] = (),
    freed: Freed | None = None,
  ) -> None:
    """Weighs all that are held."""
    self._table, self._freed = table, freed
    self._rows = rows = np.flatnonzero(table.held[: table.size])
    self._worth: list[float] = worths(table, rows).tolist()
    self._place = {row: place for place, row in enumerate(rows.tolist())}
    for row in pinned:
      if row in self._place:
        self.keep(row)
    # Where units do not change the order: the least, its number and its place.
    numbers = table.number[rows].tolist()
    self._heap = [*zip(self._worth, numbers, range(rows.size))]
    if freed is None:
      heapify(self._heap)
    # One number at a time is read of a view in a third of the time.
    self._rate, self._cost = table.rate.data, table.cost.data
    self._number = table.number.data
    self._counting = pages.Counting(table)
    self._above: dict[int, int] = {}
    self._below: dict[int, list[int]] = {ROOT: []}
    self._flows: dict[int, list[float]] = {}
    self._rates: dict[int, float] = {}
    self._heirs: dict[int, int] = {}
    if going:
      self._note_neighbours([*going])

  def _note_neighbours(self, going: list[int]) -> None:
    """Who stands above those that may go, and who below them."""
    table, rows = self._table, self._rows
    goes = np.zeros(table.size, np.bool_)
    goes[going] = True
    above = table.holder[table.parent[rows]]
    near = np.flatnonzero(goes[rows] | goes[above])
    for row, over in zip(rows[near].tolist(), above[near].tolist()):
      self._above[row] = over
      self._below.setdefault(over, []).append(row)

  def least(self) -> int | None:
    """Names the one that is worth least per unit that it takes.

    Returns:
      Its row, of equals the one whose block was seen first; None where all
      others stay.

    Raises:
      ValueError: If one frees nothing.
    """
    if self._freed is not None and self._worth:
      return self._least_by_unit(self._freed)
    heap, worth = self._heap, self._worth
    while heap:
      least, _, place = heap[0]
      if least == worth[place]:
        return None if least == _STAYS else int(self._rows[place])
      heappop(heap)  # It was weighed anew since, or stays.
    return None

  def _least_by_unit(self, freed: Freed) -> int | None:
    """As `least`, where what each of them frees may have changed."""
    units = np.asarray(freed(self._rows), np.float64)
    if not (units > 0).all():
      raise ValueError(f"freed must be positive, got {units.min()}")
    worth = np.array(self._worth) / units
    place = int(worth.argmin())
    if worth[place] == _STAYS:
      return None
    rows = self._rows[worth == worth[place]]
    if rows.size > 1:
      return int(rows[self._table.number[rows].argmin()])
    return int(rows[0])

  def keep(self, row: int) -> None:
    """One that is held must stay.

    Args:
      row: Its row.
    """
    self._worth[self._place[row]] = _STAYS

  def release(self, row: int) -> None:
    """One leaves; its flow goes to the next holder above.

    Args:
      row: One of those that may go.
    """
    above = self._above.pop(row)
    self._counting.go(row)
    flow = [*map(add, self._flow(above), self._flow(row))]
    self._flows.pop(row, None)
    self._flows[above] = flow
    self._rates[above] = max(map(truediv, flow, _HORIZONS))
    self._heirs[row] = above
    self.keep(row)
    for heir in self._below.pop(row, ()):
      if heir in self._above:  # It has not left itself.
        self._above[heir] = above
        self._below.setdefault(above, []).append(heir)
        self._weigh(heir, above)
    if above != ROOT:
      self._weigh(above, self._over(above))

  def finish(self) -> None:
    """Writes what has changed, once for all that left."""
    table, heirs = self._table, self._heirs
    if not heirs:
      return
    for row in reversed([*heirs]):
      heirs[row] = heirs.get(heirs[row], heirs[row])
    now = np.arange(table.size)
    now[[*heirs]] = [*heirs.values()]
    table.holder[: table.size] = now[table.holder[: table.size]]
    gone = [*heirs]
    table.flow[gone], table.rate[gone] = 0.0, 0.0
    rates = [self._rates[row] for row in self._flows]
    table.flow[[*self._flows]] = [*self._flows.values()]
    table.rate[[*self._flows]] = rates

  def _flow(self, row: int) -> list[float]:
    """The flow of a holder by now."""
    flow = self._flows.get(row)
    return self._table.flow[row].tolist() if flow is None else flow

  def _over(self, row: int) -> int:
    """The nearest held above a row by now; `ROOT` where there is none."""
    if row in self._above:
      return self._above[row]
    return int(self._table.holder[self._table.parent[row]])

  def _weigh(self, row: int, over: int) -> None:
    """Weighs one anew, unless it stays anyway."""
    place = self._place[row]
    if self._worth[place] == _STAYS:
      return
    rate = self._rates.get(row)
    rate = self._rate[row] if rate is None else rate
    spared = self._cost[row] - self._cost[over]
    self._worth[place] = worth = max(rate, LEAST_RATE) * spared
    if self._freed is None:
      heappush(self._heap, (worth, self._number[row], place))


def release_least(
  table: Table,
  going: Collection[int],
  most: int,
  *,
  pinned: Collection[int] = (),
  freed: Freed | None = None,
  stays: Callable[[int], bool] = lambda row: False,
) -> tuple[list[int], int | None]:
  """Releases candidates until one is worth less that is not to be released.

  Args:
    table: Written as by `Leaving`.
    going: Held rows that may be released.
    most: How many of them, at most.
    pinned: Rows that must stay.
    freed: As of `Leaving`.
    stays: Whether another one must stay, asked when its turn has come.

  Returns:
    Those released, in order, and who would be next of those that may not: None
    where all of them stay, or enough were released before.
  """
  leaving = Leaving(table, pinned=pinned, going=going, freed=freed)
  gone: list[int] = []
  following = None
  while len(gone) < most and (row := leaving.least()) is not None:
    if row in going:
      leaving.release(row)
      gone.append(row)
    elif stays(row):
      leaving.keep(row)
    else:
      following = row
      break
  leaving.finish()
  return gone, following
