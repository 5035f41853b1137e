"""How likely a prefix is asked for again, as a function of its age: hazards.

The *hazard* of a candidate of age a (requests since its last visit) is the
probability that the next request is the first since then to go exactly this far
in what is known. It is estimated like a death rate: *events* (visits that went
exactly this far) over *exposure* (how many requests candidates have waited at
that age). Who waits still, counts as well: its exposure is censored, not over,
and leaving it out would make every prefix look as if it were asked for soon.

Candidates are alike within a cell (`cells`). Cells nest in seven levels, from
all candidates over those of a kind to those that share all six facts, and a
cell of which little is known leans on the one above it (`fitting`).

Nothing fades: while requests stay of one kind, forgetting was measured to lose
more than it gains. When others come, what was counted before is put aside
(`regime`).
"""

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.worth.ages import (
  BINS,
  EDGES,
  HORIZONS,
  age_bins,
  integral_to_edges,
  spread,
)
from sparse_prefix_jax.placement.worth.cells import CELLS, SHAPE
from sparse_prefix_jax.placement.worth.fitting import fitted
from sparse_prefix_jax.placement.worth.regime import STILL_COUNTED, News, Regime

_Candidates = tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]
"""Their cells and their ages."""


class Hazards:
  """Events and exposure of every cell, and the hazards fitted to them last.

  What is noted is added up when the hazards are fitted next.

  Attributes:
    rates: float64 [CELLS, BINS], hazards of the last `refit`.

  >>> hazards, cell = Hazards(), np.array([7])
  >>> before = float(hazards.integral(cell, np.array([4]))[0])
  >>> for _ in range(9):
  ...   hazards.expose(cell, np.array([4]))
  ...   hazards.happen(cell, np.array([4]))
  >>> hazards.refit(cell, np.array([1])).name
  'NONE'
  >>> float(hazards.integral(cell, np.array([4]))[0]) > 10 * before
  True
  """

  def __init__(self) -> None:
    """Starts with no events, and the hazards that follow from none."""
    self._events, self._exposure = _nothing()
    self._waited: list[_Candidates] = []
    self._visited: list[_Candidates] = []
    self._regime = Regime()
    self._mark = self._former = _nothing()
    nobody = np.zeros(0, np.int64)
    self.refit(nobody, nobody)

  @property
  def events(self) -> Float64[np.ndarray, "cells bins"]:
    """Visits that went exactly as far, under the present regime."""
    self._settle()
    return self._events

  @property
  def exposure(self) -> Float64[np.ndarray, "cells bins"]:
    """Requests waited, of visits that came, under the present regime.

    It is less than nothing where candidates that wait still had waited so long
    when that began.
    """
    self._settle()
    return self._exposure

  def _settle(self) -> None:
    """Adds up what was noted, in its order; nobody waits for it."""
    if self._waited:
      cells, ages = map(np.concatenate, zip(*self._waited))
      np.add.at(self._exposure, cells, spread(ages))
      self._waited = []
    if self._visited:
      cells, ages = map(np.concatenate, zip(*self._visited))
      np.add.at(self._events, (cells, age_bins(ages - 1)), 1)
      self._visited = []

  @property
  def bytes(self) -> int:
    """Bytes of all of it, always as many."""
    arrays = (self._events, self._exposure, self.rates, self._to_edges)
    arrays += (self._to_horizons, *self._mark, *self._former)
    return sum(array.nbytes for array in arrays) + self._regime.bytes

  def expose(
    self, cells: Int64[np.ndarray, "n"], ages: Int64[np.ndarray, "n"]
  ) -> None:
    """Counts how long candidates have waited that wait no more.

    Args:
      cells: The cell of each, as it was while it waited.
      ages: How many requests it has waited, at least 1.
    """
    self._waited.append((cells, ages))

  def happen(
    self, cells: Int64[np.ndarray, "n"], ages: Int64[np.ndarray, "n"]
  ) -> None:
    """Counts visits that went exactly as far.

    Args:
      cells: The cell of each candidate, as it was while it waited.
      ages: How many requests it has waited, at least 1.
    """
    self._visited.append((cells, ages))

  def refit(
    self, cells: Int64[np.ndarray, "n"], ages: Int64[np.ndarray, "n"]
  ) -> News:
    """Fits the hazards again.

    Args:
      cells: The cells of all candidates that wait now.
      ages: How long they have waited so far.

    Returns:
      Whether requests are as they were; what is counted is as it says.
    """
    waiting = _waiting(cells, ages)
    counted = self.events, self.exposure + waiting
    news = self._regime.observe(*counted)
    self._hear(news)
    counted = self.events, self.exposure + waiting
    if news is not News.SUSPECTED:
      self._mark = counted[0].copy(), counted[1]
    rates = fitted(*(count.reshape(*SHAPE, BINS) for count in counted))
    self.rates = rates.reshape(CELLS, BINS)
    self._to_edges = integral_to_edges(self.rates)
    self._to_horizons = self.integral(np.arange(CELLS)[:, None], HORIZONS)
    return news

  def _hear(self, news: News) -> None:
    """Puts aside what was counted before the mark, or counts it again."""
    counts = self._events, self._exposure
    if news is News.CHANGED:
      aside = tuple((1 - STILL_COUNTED) * mark for mark in self._mark)
      self._events, self._exposure = map(np.subtract, counts, aside)
      self._former = tuple(map(np.add, self._former, aside))
    if news is News.RETURNED:
      self._events, self._exposure = map(np.add, counts, self._former)
      self._former = _nothing()

  def integral(
    self, cells: Int64[np.ndarray, "..."], ages: Int64[np.ndarray, "..."]
  ) -> Float64[np.ndarray, "..."]:
    """Returns H(a), how many visits are expected up to age a.

    Args:
      cells: Cells, of a shape that goes with that of the ages.
      ages: Requests, not negative.
    """
    bins = age_bins(ages)
    where = cells * BINS + bins
    within = ages - EDGES.take(bins)
    return self._to_edges.take(where) + self.rates.take(where) * within

  def to_horizons(
    self, cells: Int64[np.ndarray, "n"]
  ) -> Float64[np.ndarray, "n horizons"]:
    """Returns H up to every horizon, looked up; most demand is asked at age 0.

    Args:
      cells: Of candidates.
    """
    return self._to_horizons[cells]


def _nothing() -> tuple[np.ndarray, np.ndarray]:
  """No events and no exposure, float64 [CELLS, BINS] each."""
  return np.zeros((CELLS, BINS)), np.zeros((CELLS, BINS))


def _waiting(
  cells: Int64[np.ndarray, "n"], ages: Int64[np.ndarray, "n"]
) -> Float64[np.ndarray, "cells bins"]:
  """The exposure of those who wait, by cell and bin.

  A candidate has passed all bins below its own, and is somewhere in that one.
  """
  bins = age_bins(ages)
  where, size = cells * BINS + bins, CELLS * BINS
  within = np.minimum(ages, EDGES[-1]) - EDGES[bins]
  inside = np.bincount(where, within, size).reshape(CELLS, BINS)
  here = np.bincount(where, minlength=size).reshape(CELLS, BINS)
  beyond = np.cumsum(here[:, ::-1], axis=1)[:, ::-1] - here
  return inside + beyond * np.diff(EDGES)
