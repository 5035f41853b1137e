"""Which states leave, the one worth least first: `Leaving`.

What a prompt offers is held as if there were room for all of it, and most of it
leaves again at once: a prompt that shares hundreds of branches offers dozens of
candidates. A state that leaves changes what the next ones above and below it
are worth, and nobody else; so all are weighed once, and those few again.
"""

from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush
from operator import add

import numpy as np
from jaxtyping import Int64

from sparse_prefix_jax.placement.worth import pages
from sparse_prefix_jax.placement.worth.ages import HORIZONS
from sparse_prefix_jax.placement.worth.flow import LEAST_RATE, worths
from sparse_prefix_jax.placement.worth.table import ROOT, Table

Freed = Callable[[Int64[np.ndarray, "n"]], np.ndarray]
"""What evicting each of some held rows would free, positive."""

_HORIZONS = HORIZONS.astype(np.float64)
_STAYS = float("inf")

_Weighed = tuple[float, int, int]
"""What one is worth, its number, and its place among all that are held."""


class Leaving:
  """Held candidates by what they are worth, while some of them leave.

  Nothing else may change them meanwhile, and `finish` is due at the end.

  Of all that are held only few change: those that may go, and who is next to
  them. These are in a heap; of the others one is least, and stays so. Flows
  are counted as rates, per horizon: horizons are powers of two, so that nothing
  is rounded by it.

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
    self._rows = np.flatnonzero(table.held[: table.size])
    self._worth = worths(table, self._rows)
    self._pin(pinned)
    # One number at a time is read of a view in a third of the time.
    self._worth_at = self._worth.data
    self._rate, self._cost = table.rate.data, table.cost.data
    self._number = table.number.data
    self._counting = pages.Counting(table)
    self._above: dict[int, int] = {}
    self._below: dict[int, list[int]] = {ROOT: []}
    self._rates: dict[int, list[float]] = {}
    self._best: dict[int, float] = {}
    self._heirs: dict[int, int] = {}
    near = self._note_neighbours([*going]) if going else self._rows[:0]
    self._place = dict(zip(self._rows[near].tolist(), near.tolist()))
    self._heap: list[_Weighed] = []
    if freed is None:
      self._begin_heap(near)

  def _pin(self, pinned: Collection[int]) -> None:
    """Some must stay, of those that are held."""
    if pinned and self._rows.size:
      rows = np.fromiter(pinned, np.int64, len(pinned))
      places = np.minimum(self._rows.searchsorted(rows), self._rows.size - 1)
      self._worth[places[self._rows[places] == rows]] = _STAYS

  def _note_neighbours(self, going: list[int]) -> Int64[np.ndarray, "n"]:
    """Who stands above those that may go, and who below them.

    Returns:
      The places of all whose worth may change.
    """
    table, rows = self._table, self._rows
    above = table.holder[table.parent[rows]]
    goes, gains = np.zeros((2, table.size), np.bool_)
    goes[going] = True
    may_go = goes[rows]
    gains[above[may_go]] = True
    linked = np.flatnonzero(may_go | goes[above])
    for row, over in zip(rows[linked].tolist(), above[linked].tolist()):
      self._above[row] = over
      self._below.setdefault(over, []).append(row)
    flows = np.append(ROOT, rows[may_go | gains[rows]])
    rates = (table.flow[flows] / _HORIZONS).tolist()
    self._rates = dict(zip(flows.tolist(), rates))
    return np.flatnonzero(may_go | goes[above] | gains[rows])

  def _begin_heap(self, near: Int64[np.ndarray, "n"]) -> None:
    """Orders those whose worth may change, and finds the least of the others.

    Units do not change the order: the least, its number and its place.
    """
    worth, numbers = self._worth[near], self._table.number[self._rows[near]]
    self._heap = [*zip(worth.tolist(), numbers.tolist(), near.tolist())]
    heapify(self._heap)
    self._others = self._worth.copy()
    self._others[near] = _STAYS
    self._other = self._least_other()

  def _least_other(self) -> _Weighed:
    """The least of those whose worth does not change."""
    if not self._rows.size:
      return _STAYS, 0, 0
    least = self._others.min()
    places = np.flatnonzero(self._others == least)
    numbers = self._table.number[self._rows[places]]
    first = int(numbers.argmin())
    return float(least), int(numbers[first]), int(places[first])

  def least(self) -> int | None:
    """Names the one that is worth least per unit that it takes.

    Returns:
      Its row, of equals the one whose block was seen first; None where all
      others stay.

    Raises:
      ValueError: If one frees nothing.
    """
    if self._freed is not None:
      return self._least_by_unit(self._freed) if self._rows.size else None
    heap, worth = self._heap, self._worth_at
    while heap and heap[0][0] != worth[heap[0][2]]:
      heappop(heap)  # It was weighed anew since, or stays.
    least, _, place = min(heap[0], self._other) if heap else self._other
    return None if least == _STAYS else int(self._rows[place])

  def _least_by_unit(self, freed: Freed) -> int | None:
    """As `least`, where what each of them frees may have changed."""
    units = np.asarray(freed(self._rows), np.float64)
    if not (units > 0).all():
      raise ValueError(f"freed must be positive, got {units.min()}")
    worth = self._worth / units
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
    place = int(self._rows.searchsorted(row))
    self._worth[place] = _STAYS
    if self._freed is None:
      self._others[place] = _STAYS
      self._other = self._least_other()

  def release(self, row: int) -> None:
    """One leaves; its flow goes to the next holder above.

    Args:
      row: One of those that may go.
    """
    above = self._above.pop(row)
    self._counting.go(row)
    rates = [*map(add, self._rates[above], self._rates.pop(row))]
    self._rates[above], self._best[above] = rates, max(rates)
    self._heirs[row] = above
    self._worth[self._place[row]] = _STAYS
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
    gone, holder = [*heirs], table.holder[: table.size]
    left = np.zeros(table.size, np.bool_)
    left[gone] = True
    heir_of = np.empty(table.size, np.int64)
    heir_of[gone] = [*heirs.values()]
    loses = np.flatnonzero(left[holder])
    holder[loses] = heir_of[holder[loses]]
    table.flow[gone], table.rate[gone] = 0.0, 0.0
    gained = [row for row in self._best if row in self._rates]
    rates = np.array([self._rates[row] for row in gained])
    table.flow[gained] = rates * _HORIZONS
    table.rate[gained] = [self._best[row] for row in gained]

  def _over(self, row: int) -> int:
    """The nearest held above a row by now; `ROOT` where there is none."""
    if row in self._above:
      return self._above[row]
    return int(self._table.holder[self._table.parent[row]])

  def _weigh(self, row: int, over: int) -> None:
    """Weighs one anew, unless it stays anyway."""
    place = self._place[row]
    if self._worth_at[place] == _STAYS:
      return
    rate = self._best.get(row)
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
