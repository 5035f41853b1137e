"""Whether what was learned still tells what comes: `Regime`.

Hazards do not fade: while requests stay of one kind, forgetting loses more than
it gains. But when other requests come (another application, the batches of the
night), tens of thousands of earlier ones would be remembered against the first
hundreds of these. So guesses are compared at every refit, on what happened
since the last one and before any has learned from it: hazards of what is known,
hazards of what was seen since a *mark* alone, and hazards of all that was ever
seen. By the likelihood of deaths at known exposure,

    score = sum over cells and ages of  events * log(hazard) - exposure * hazard

and while requests stay the same another guess is tens or hundreds behind at
once: the mark moves to now. If the young one is ahead by 20 instead (e^20 to
1), what was known before the mark is put aside, but for a twentieth: that is
better than to know nothing, and soon outweighed. What is put aside is kept,
however often that happens. If all that was ever seen is ahead, requests have
come back (a day after a night): it is known from then on, and to put any of it
aside again takes four times as much. Where kinds of requests take turns, two or
more of them, none must be forgotten for another.

Few facts are enough for that: kind and passes, the first two of `cells`.
"""

from enum import Enum

import numpy as np
from jaxtyping import Float64

from sparse_prefix_jax.placement.worth.ages import BINS
from sparse_prefix_jax.placement.worth.cells import SHAPE
from sparse_prefix_jax.placement.worth.fitting import fitted

STILL_COUNTED = 0.05
"""What still counts of what was learned before requests changed."""

_AHEAD = 20.0
# A mark that has not proved itself within so many refits moves as well.
_OLDEST_MARK = 8
_TO_PART_AGAIN = 4
_COARSE = SHAPE[:2]

_NOTHING = np.zeros((*_COARSE, BINS)), np.zeros((*_COARSE, BINS))

_Counts = Float64[np.ndarray, "cells bins"]
_Both = tuple[np.ndarray, np.ndarray]
"""Events and exposure, float64 [kinds, passes, BINS]."""


class News(Enum):
  """What a regime has found at a refit.

  Attributes:
    NONE: Requests are as they were; the mark moves to now.
    SUSPECTED: They are not quite: the mark stays.
    CHANGED: They are others since the mark: what was known before it is put
      aside, but for `STILL_COUNTED` of it.
    RETURNED: They are as before some change: whatever was put aside is known
      again, beside what was learned since.
  """

  NONE = 0
  SUSPECTED = 1
  CHANGED = 2
  RETURNED = 3


class Regime:
  """Compares what is known with other guesses, at every refit.

  >>> regime, seen = Regime(), np.zeros((60, BINS))
  >>> regime.observe(seen, seen + 1).name
  'NONE'
  """

  def __init__(self) -> None:
    """Knows nothing yet."""
    self._known = self._mark = self._former = _NOTHING
    # Of two guesses: what was seen since the mark, and all that ever was.
    self._ahead, self._age, self._enough = np.zeros(2), 0, [_AHEAD, _AHEAD]

  @property
  def bytes(self) -> int:
    """Bytes of all that it compares."""
    both = self._known, self._mark, self._former
    return sum(array.nbytes for counts in both for array in counts)

  def observe(self, events: _Counts, exposure: _Counts) -> News:
    """Looks at what happened since the last refit.

    Args:
      events: Visits that were counted, of what is known, by cell.
      exposure: Requests waited, with those who wait still.

    Returns:
      Whether it is what had been expected; what is known is as it says.
    """
    seen = _coarse(events), _coarse(exposure)
    self._compare(_less(seen, self._known), _less(self._known, self._mark))
    self._known, self._age = seen, self._age + 1
    best = int(self._ahead.argmax())
    if self._ahead[best] > self._enough[best]:
      return (self._change, self._return)[best]()
    if self._ahead[best] > 0 and self._age < _OLDEST_MARK:
      return News.SUSPECTED
    self._move()
    return News.NONE

  def _change(self) -> News:
    """What was known before the mark is put aside, but for a little."""
    aside = (
      (1 - STILL_COUNTED) * self._mark[0],
      (1 - STILL_COUNTED) * self._mark[1],
    )
    self._known = _less(self._known, aside)
    self._former = _more(self._former, aside)
    self._move()
    return News.CHANGED

  def _return(self) -> News:
    """All that was put aside is known as well."""
    self._known, self._former = _more(self._known, self._former), _NOTHING
    self._enough[0] *= _TO_PART_AGAIN
    self._move()
    return News.RETURNED

  def _compare(self, fresh: _Both, since: _Both) -> None:
    """How likely what is fresh was by other guesses, against what is known."""
    known = _score(fresh, fitted(*self._known))
    for place, guess in enumerate((since, _more(self._former, self._known))):
      self._ahead[place] += _score(fresh, fitted(*guess)) - known

  def _move(self) -> None:
    """The mark is now."""
    self._mark, self._age = self._known, 0
    self._ahead = np.zeros(2)


def _coarse(counts: _Counts) -> np.ndarray:
  """Counts by the leading facts alone."""
  return counts.reshape(*_COARSE, -1, BINS).sum(axis=-2)


def _less(counts: _Both, before: _Both) -> _Both:
  """What has been counted since."""
  return counts[0] - before[0], counts[1] - before[1]


def _more(counts: _Both, since: _Both) -> _Both:
  """What has been counted, and what was since."""
  return counts[0] + since[0], counts[1] + since[1]


def _score(seen: _Both, hazards: np.ndarray) -> float:
  """The logarithm of how likely that was, but for a constant."""
  events, exposure = seen
  return float((events * np.log(hazards) - exposure * hazards).sum())
