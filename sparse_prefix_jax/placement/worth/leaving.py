"""Which states leave, the one worth least first: `Leaving`.

What a prompt offers is held as if there were room for all of it, and most of it
leaves again at once: a prompt that shares hundreds of branches offers dozens of
candidates, and several states may have to go for the rest. What leaves changes
what the next ones above and below it are worth, and nobody else; so all are
weighed once, and those few again.
"""

from bisect import bisect_left
from collections.abc import Collection
from operator import add
from typing import NamedTuple, TypeVar

import numpy as np

from sparse_prefix_jax.placement.worth import pages
from sparse_prefix_jax.placement.worth.ages import HORIZONS
from sparse_prefix_jax.placement.worth.flow import LEAST_RATE, worths
from sparse_prefix_jax.placement.worth.table import ROOT, Table

_NOTHING = 1e-9  # Of states that free nothing of use, the rest decides.
_HORIZONS = HORIZONS.astype(np.float64)
_STAYS = float("inf")
_GONE = -1

Count = TypeVar("Count", float, np.ndarray)
"""One number, or one for each of some states."""


class Freed(NamedTuple):
  """What evicting a state counts, towards what room is missing.

  Attributes:
    state: What the state itself counts.
    block: What each block counts that nobody else needs.
    beside: What the state counts beside blocks, where it frees any that count;
      of no use to what is missing, but to whoever comes next.

  >>> Freed(100, 10).of(3.0)
  130.0
  """

  state: float = 1
  block: float = 0
  beside: float = 0

  def of(self, blocks: Count) -> Count:
    """Counts what states free; almost nothing where nothing is of use.

    Args:
      blocks: How many blocks only each of them needs.
    """
    units = self.state + self.block * blocks
    some = units > 0
    return units + self.beside * some + _NOTHING * (1 - some)


ALIKE = Freed()
"""Every state frees the same."""


class Leaving:
  """Held candidates by what they are worth, while some of them leave.

  Nothing else may change them meanwhile, and `finish` is due at the end.

  Flows are counted as rates, per horizon: horizons are powers of two, so that
  nothing is rounded by it.

  Args:
    table: Its columns of states, flows and pages are written.
    pinned: Rows that must stay.
    freed: What each would free.
  """

  def __init__(
    self,
    table: Table,
    *,
    pinned: Collection[int] = (),
    freed: Freed = ALIKE,
  ) -> None:
    """Weighs all that are held."""
    self._table, self._freed = table, freed
    self._rows = rows = np.flatnonzero(table.held[: table.size])
    self._above = table.holder[table.parent[rows]]
    self._units = freed.of(table.freed[rows].astype(np.float64))
    self._value = worths(table, rows) / self._units
    self._pin(pinned)
    # One number at a time is read of a view in a third of the time.
    self._row_at, self._value_at = rows.data, self._value.data
    self._units_at = self._units.data
    self._rate, self._cost = table.rate.data, table.cost.data
    self._freed_at = table.freed.data
    self._counting = pages.Counting(table)
    self._rates: dict[int, list[float]] = {}
    self._best: dict[int, float] = {}
    self._heirs: dict[int, int] = {}

  def _pin(self, pinned: Collection[int]) -> None:
    """Some must stay, of those that are held."""
    if pinned and self._rows.size:
      rows = np.fromiter(pinned, np.int64, len(pinned))
      places = np.minimum(self._rows.searchsorted(rows), self._rows.size - 1)
      self._value[places[self._rows[places] == rows]] = _STAYS

  def least(self) -> int | None:
    """Names the one that is worth least per unit that it takes.

    Returns:
      Its row, of equals the one whose block was seen first; None where all
      others stay.
    """
    if not self._rows.size:
      return None
    least = self._value_at[self._value.argmin()]
    if least == _STAYS:
      return None
    rows = self._rows[self._value == least]
    if rows.size == 1:
      return int(rows[0])
    return int(rows[self._table.number[rows].argmin()])

  def keep(self, row: int) -> None:
    """One that is held must stay.

    Args:
      row: Its row.
    """
    self._value[self._place(row)] = _STAYS

  def release(self, row: int) -> None:
    """One leaves; its flow goes to the next holder above.

    Args:
      row: A held one.
    """
    place = self._place(row)
    heirs = (self._above == row).nonzero()[0]
    above = int(self._above[place])
    self._above[heirs] = above
    self._above[place] = _GONE
    self._value[place] = _STAYS
    self._heirs[row] = above
    rates = [*map(add, self._rates_of(above), self._rates_of(row))]
    self._rates[above], self._best[above] = rates, max(rates)
    freer = self._counting.go(row)
    changed = {*heirs.tolist()}
    if freer is not None:
      place = self._place(freer)
      self._units[place] = self._freed.of(float(self._freed_at[freer]))
      changed.add(place)
    if above != ROOT:
      changed.add(self._place(above))
    for place in changed:
      self._weigh(place)

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
    gained = [row for row in self._best if row not in heirs]
    rates = np.array([self._rates[row] for row in gained])
    table.flow[gained] = rates * _HORIZONS
    table.rate[gained] = [self._best[row] for row in gained]

  def _place(self, row: int) -> int:
    """Where a row is among those that were held."""
    return bisect_left(self._row_at, row)

  def _rates_of(self, row: int) -> list[float]:
    """The flow of a row by now, over the horizons."""
    if row not in self._rates:
      self._rates[row] = (self._table.flow[row] / _HORIZONS).tolist()
    return self._rates[row]

  def _weigh(self, place: int) -> None:
    """Weighs one anew, unless it stays anyway."""
    if self._value_at[place] == _STAYS:
      return
    row = self._row_at[place]
    rate = self._best.get(row)
    rate = self._rate[row] if rate is None else rate
    spared = self._cost[row] - self._cost[self._above[place]]
    self._value[place] = max(rate, LEAST_RATE) * spared / self._units_at[place]
