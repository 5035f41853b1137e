"""Upper bounds by prices: what every request would choose by itself.

That no more may be held than there is room for joins the requests. With a price
for every step it is given up: each chooses what exceeds its prices most, and
for any prices that are not negative the sum of what they gain, and of what all
room costs, is an upper bound (weak duality). The prices are improved by the
subgradient method. So a bound is certified: no more than its arithmetic has to
be right.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

ITERATIONS = 300
"""Steps by which a bound is lowered, unless fewer are asked for."""

_FIRST_STEP = 0.02
_SHORTER = 0.6
_STALLED = 15
_WORTHWHILE = 1e-5
# Rounding errors are far below; gains are whole numbers of blocks.
_ROUNDING = 1e-9


class Bound(NamedTuple):
  """An upper bound, and the prices that prove it.

  Attributes:
    blocks: What is saved at most.
    prices: float64 [requests], per step from one request to the next.
  """

  blocks: int
  prices: Float64[np.ndarray, "requests"]


class Relaxed(NamedTuple):
  """The relaxed problem at some prices.

  Attributes:
    value: An upper bound, in blocks.
    prices: Those prices, per step.
    slope: How the value changes with each price: what there is at the step,
      less what is taken of it.
  """

  value: float
  prices: Float64[np.ndarray, "steps"]
  slope: Float64[np.ndarray, "steps"]


@runtime_checkable
class Dual(Protocol):
  """The relaxed problem as a function of the prices."""

  def relax(self, prices: Float64[np.ndarray, "steps"]) -> Relaxed:
    """Lets every request choose by itself."""
    ...


def _value(relaxed: Relaxed) -> float:
  """What is minimised."""
  return relaxed.value


def lowest(
  dual: Dual,
  steps: Float64[np.ndarray, "steps"],
  iterations: int = ITERATIONS,
) -> Bound:
  """Returns the lowest bound that prices were found for.

  Args:
    dual: The relaxed problem.
    steps: 1 where a step may have a price, 0 where it has none.
    iterations: How often the prices are improved; after any number of them it
      is a bound.
  """
  constants = np.concatenate([[0.0], np.geomspace(1e-5, 1e3, 25)])
  best = min((dual.relax(c * steps) for c in constants), key=_value)
  best = _descend(dual, best, steps, iterations)
  return Bound(int(best.value * (1 + _ROUNDING) + _ROUNDING), best.prices)


class Choices:
  """Which intervals belong to each request, to choose one of them.

  Args:
    request: Who could resume by each interval, ascending.
  """

  def __init__(self, request: Int64[np.ndarray, "n"]) -> None:
    """Finds where the intervals of each request begin."""
    changes = np.diff(request, prepend=-1) > 0
    self._first = np.flatnonzero(changes)
    self._group = np.cumsum(changes) - 1

  def best(
    self, profit: Float64[np.ndarray, "n"]
  ) -> tuple[float, Int64[np.ndarray, "chosen"]]:
    """What requests gain in all, and the first best interval of who gains.

    Args:
      profit: Of every interval.
    """
    most = np.maximum.reduceat(profit, self._first)
    best = (profit == most[self._group]) & (profit > 0)
    found = np.flatnonzero(best)
    chosen = found[np.unique(self._group[found], return_index=True)[1]]
    return float(most[most > 0].sum()), chosen


def _descend(
  dual: Dual,
  best: Relaxed,
  steps: Float64[np.ndarray, "steps"],
  iterations: int,
) -> Relaxed:
  """Lowers the bound by steps against the slope, each of Polyak's length."""
  now, length, stalled = best, _FIRST_STEP, 0
  for _ in range(iterations):
    # A price of 0 cannot fall.
    slope = np.where((now.slope > 0) & (now.prices <= 0), 0.0, now.slope)
    slope = slope * steps
    # Not a product: threads of BLAS wait for each other on a busy machine.
    norm = float(np.square(slope).sum())
    if not norm:
      break
    step = length * best.value / norm
    now = dual.relax(np.maximum(0.0, now.prices - step * slope))
    stalled = 0 if now.value < best.value * (1 - _WORTHWHILE) else stalled + 1
    best = min(best, now, key=_value)
    if stalled > _STALLED:
      now, length, stalled = best, length * _SHORTER, 0
  return best
