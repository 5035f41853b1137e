"""One price for a state, common to all entries: an average budget, spent best.

What an entry gains by its m-th state never grows with m, so a budget over many
entries is spent best where each of them keeps every state that gains more than
one common price. `solve_priced` finds those states of an entry; `common_price`
finds the price at which a sample of entries keeps as many as the budget allows
on average. Where many gains are equal, that no price splits them, a share of
the entries pays the next lower price.

A state is of use only just before the survival function falls. So an entry is
given as its steps (`Steps`), and time grows with their number, not with the
depth of the entry.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.kinds import brief, check_class
from sparse_prefix_jax.placement.inputs import as_vector, concrete_cost
from sparse_prefix_jax.whole_numbers import as_float

Survival = Float64[np.ndarray, "_"]

# Neighbouring prices are this far apart. It is close enough: the entries that
# pay the lower one are chosen so that the budget is met in any case.
_CLOSE = 1.1

# Prices that are tried lie above this share of the highest; what gains less is
# rounding.
_LEAST = 2.0**-52

# Steps below the highest price at which a search begins that knows no better.
_FIRST = 16


class Steps(NamedTuple):
  """Where the survival function of an entry falls, and from what.

  Attributes:
    depths: int64 [P], depths > 0 in ascending order, behind each of which the
      survival function is lower than at it.
    cost: float64 [P], cumulative cost F there, ascending and > 0.
    survival: float64 [P], G there, descending.
  """

  depths: Int64[np.ndarray, "P"]
  cost: Float64[np.ndarray, "P"]
  survival: Float64[np.ndarray, "P"]

  @classmethod
  def of(
    cls,
    depths: Int64[np.ndarray, "n"],
    survival: Float64[np.ndarray, "n"],
    cost: np.ndarray | None = None,
  ) -> "Steps":
    """Leaves out depths that cost no more to reach than the one before.

    Args:
      depths: [n] Depths > 0 in ascending order.
      survival: [n] G at these, descending.
      cost: [N] F at depth 0, 1, 2, ...; None for the linear one.

    >>> Steps.of(np.array([1, 2]), np.array([3.0, 1.0])).cost
    array([1., 2.])
    """
    if cost is None:
      return cls(depths, depths.astype(np.float64), survival)
    paid = np.asarray(cost, np.float64)[depths]
    dearer = np.diff(paid, prepend=0.0) > 0
    return cls(depths[dearer], paid[dearer], survival[dearer])

  @classmethod
  def under(cls, survival: Survival, cost: np.ndarray | None = None) -> "Steps":
    """Finds the depths behind which a survival function falls.

    Args:
      survival: [N] G(s), the weight of the depths s and deeper, never
        increasing.
      cost: [N] F at depth 0, 1, 2, ...; None for the linear one.

    >>> Steps.under(np.array([9.0, 9.0, 4.0])).depths
    array([1, 2])
    """
    falls = survival > np.append(survival[1:], 0.0)
    depths = np.flatnonzero(falls[1:]) + 1
    return cls.of(depths, survival[depths], cost)


_Line: TypeAlias = tuple[float, float, int]
"""The best choice of states that ends at one, as a line in G: its F, by which
the line falls; what the choice gains, where the line begins; and the number of
the state among the places, from 1."""


def solve_steps(steps: Steps, price: float) -> list[int]:
  """Finds the states of an entry that are worth a price, as `solve_priced`.

  Args:
    steps: Where its survival function falls.
    price: What a state has to gain at least.

  Returns:
    The depths in ascending order.

  >>> solve_steps(Steps.of(np.array([4]), np.array([9.0])), 30.0)
  [4]
  """
  # A state in the best choice gains more than the price over none at all.
  places = np.flatnonzero(steps.cost * steps.survival > price)
  # The queue has the lines that are best for some G.
  queue, first = [(0.0, 0.0, 0)], 0
  before, most, end = [0], 0.0, 0
  for cost, mass in zip(
    steps.cost[places].tolist(), steps.survival[places].tolist()
  ):
    falls, gain, node = queue[first]
    while first + 1 < len(queue):
      following = queue[first + 1]
      if following[1] - gain <= (following[0] - falls) * mass:
        break
      first, (falls, gain, node) = first + 1, following
    value = gain + (cost - falls) * mass - price
    if value > most:
      most, end = value, len(before)
    # What is nowhere above both its neighbours leaves. Not a function of its
    # own: a request waits for this loop.
    while len(queue) - first > 1:
      (a, at_a, _), (b, at_b, _) = queue[-2], queue[-1]
      if (value - at_a) * (b - a) < (at_b - at_a) * (cost - a):
        break
      queue.pop()
    queue.append((cost, value, len(before)))
    before.append(node)
  return [int(steps.depths[places[node - 1]]) for node in _path(end, before)]


def _path(node: int, before: list[int]) -> list[int]:
  """The nodes on the way to a node, ascending, node 0 left out."""
  found = []
  while node:
    found.append(node)
    node = before[node]
  return found[::-1]


def solve_priced(
  survival: Survival, price: int | float, cost: np.ndarray | None = None
) -> list[int]:
  """Finds the states of one entry that are worth a price.

  Maximises `sum_i ((F(s_i) - F(s_{i-1})) G(s_i) - price)` over any number of
  states exactly; with as many states `solve_placement` finds no better places
  for them. With

      V(s) = max over r < s of  V(r) + (F(s) - F(r)) G(s) - price,   V(0) = 0

  every r is a line in G(s) with slope -F(r). Slopes and queries are monotone,
  so that a queue of the lines that are best somewhere takes O(N) in all.

  Args:
    survival: [N] G(s), the weight of the depths s and deeper, never increasing.
    price: What a state has to gain at least, in the units of cost times
      weight, >= 0.
    cost: [N] Cumulative cost F of prefilling to each depth, F(0) = 0, never
      decreasing; None for the linear one, F(s) = s.

  Returns:
    The depths in ascending order; of equally good choices, one of few states.

  Raises:
    ValueError: If an argument is not as described.

  >>> survival = np.array([10.0, 10.0, 9.0, 9.0, 9.0, 0.0])
  >>> solve_priced(survival, 30.0), solve_priced(survival, 0.5)
  ([4], [1, 4])
  """
  weights = np.asarray(as_vector(survival, "survival"), np.float64)
  if not (np.all(np.isfinite(weights)) and np.all(np.diff(weights) <= 0)):
    raise ValueError("survival must be finite and never increase.")
  if cost is not None:
    cost = concrete_cost(cost, weights.size)
  return solve_steps(Steps.under(weights, cost), _positive("price", price))


def _positive(name: str, value: object) -> float:
  """A number that is not negative, or infinity.

  Raises:
    ValueError: If it is anything else.
  """
  number = as_float(value)
  if number >= 0:
    return number
  raise ValueError(f"{name} is {brief(value)}; it must be a number >= 0.")


class CommonPrice(NamedTuple):
  """What a state has to gain to be kept.

  Attributes:
    low: A price at which the sample keeps more states than the budget allows.
    high: A price at which it keeps no more than that.
    share: The share of entries that pay `low`.
  """

  low: float
  high: float
  share: float

  def of(self, number: int) -> float:
    """Returns the price of the entry with this number.

    A hash of the number decides who pays the lower price. In the long run they
    are as many as they should be, whichever way the numbers of one tenant
    follow each other.

    Args:
      number: Of the entry, >= 0.

    >>> price = CommonPrice(1.0, 2.0, 0.25)
    >>> [price.of(number) for number in range(8)]
    [2.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
    """
    return self.low if _fraction(number) < self.share else self.high


def _fraction(number: int) -> float:
  """A number in [0, 1) that looks random: the finaliser of SplitMix64."""
  mask = 2**64 - 1
  mixed = (number + 1) * 0x9E3779B97F4A7C15 & mask
  mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
  mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
  return (mixed ^ mixed >> 31) / 2**64


def common_price(
  entries: Sequence[Steps],
  budget: int | float,
  *,
  start: float | None = None,
  pause: Callable[[], None] | None = None,
) -> CommonPrice:
  """Finds the price at which entries keep `budget` states each, on average.

  Prices are powers of 1.1, of which two neighbours have the budget between
  them. The search goes outward from `start`, which decides how long it takes
  and not what it finds.

  Args:
    entries: The steps of each entry, of at least one.
    budget: States per entry, >= 0, whole or not.
    start: A price that may be close, of an earlier search; None for none.
    pause: Is called before an entry is solved.

  Returns:
    The price; 0 where the budget is enough for every state of any use.

  Raises:
    ValueError: If there are no entries, or an argument is of another kind.

  >>> entries = [Steps.under(np.array([4.0, 4.0, 4.0, 4.0]))] * 8
  >>> price = common_price(entries, 0.5)  # each entry gains 12 by its state
  >>> price.low < 12 < price.high, price.share
  (True, 0.5)
  """
  if not (isinstance(entries, Sequence) and entries):
    raise ValueError(
      f"entries is {brief(entries)}; it must be a list of Steps."
    )
  for entry in entries:
    check_class("entries: an entry", entry, Steps)
  budget = _positive("budget", budget)
  if start is not None:
    start = min(_positive("start", start), sys.float_info.max)
  top = max(float((e.cost * e.survival).max(initial=0.0)) for e in entries)
  if top <= 0:
    return CommonPrice(0.0, 0.0, 0.0)
  search = _Search(entries, budget * len(entries), top, pause)
  search.run(start)
  return search.found()


class _Search:
  """The search for a common price among powers of `_CLOSE`.

  Attributes:
    low, high: Exponents between which the price lies.
    at_low: How many states each entry keeps at `low`; None as long as only
      rounding is known to be worth less.
    at_high: How many states each entry keeps at `high`.
  """

  def __init__(
    self,
    entries: Sequence[Steps],
    states: int | float,
    top: float,
    pause: Callable[[], None] | None,
  ) -> None:
    """Knows that nobody keeps anything at a price of `top`."""
    self.entries, self.states, self.pause = entries, states, pause
    self.low, self.high = _exponent(top * _LEAST), _exponent(top) + 2
    self.at_low: list[int] | None = None
    self.at_high = [0] * len(entries)

  def run(self, start: float | None) -> None:
    """Goes outward from `start` in growing steps, then halves what is left."""
    here = self.high - _FIRST if start is None else self.low + 1
    here = _exponent(start) if start else here
    here = min(max(here, self.low + 1), self.high - 1)
    up, step, outward = self._try(here), 1, True
    while self.high - self.low > 1:
      here = here + step if up else here - step
      step *= 2
      outward = outward and self.low < here < self.high
      if not outward:
        here = (self.low + self.high) // 2
      outward = self._try(here) == up and outward

  def _try(self, exponent: int) -> bool:
    """Whether entries keep too many states at a price, which is noted."""
    at_low = self.at_low or [-1] * len(self.entries)
    kept = []
    for entry, most, least in zip(self.entries, at_low, self.at_high):
      # Whoever keeps as many at a lower and at a higher price does so between.
      kept.append(most if most == least else self._solve(entry, exponent))
    too_many = sum(kept) > self.states
    if too_many:
      self.low, self.at_low = exponent, kept
    else:
      self.high, self.at_high = exponent, kept
    return too_many

  def _solve(self, entry: Steps, exponent: int) -> int:
    """How many states an entry keeps at a price."""
    if self.pause is not None:
      self.pause()
    return len(solve_steps(entry, _CLOSE**exponent))

  def found(self) -> CommonPrice:
    """The two neighbours, and how many pay the lower one."""
    if self.at_low is None:
      return CommonPrice(0.0, 0.0, 0.0)
    many, few = sum(self.at_low), sum(self.at_high)
    share = (self.states - few) / (many - few)
    return CommonPrice(_CLOSE**self.low, _CLOSE**self.high, share)


def _exponent(price: float) -> int:
  """The largest power of `_CLOSE` that is not above a price > 0, as a rule.

  >>> _exponent(1.0), _exponent(1.22)
  (0, 2)
  """
  return math.floor(math.log(price) / math.log(_CLOSE))
