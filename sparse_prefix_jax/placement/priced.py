"""One price for a state, common to all entries: an average budget, spent best.

What an entry gains by its m-th state never grows with m (DESIGN section 5), so
a budget over many entries is spent best where each of them keeps every state
that gains more than one common price. `solve_priced` finds those states of an
entry; `common_price` finds the price at which a sample of entries keeps as many
as the budget allows on average. Where many gains are equal, that no price
splits them, a share of the entries pays the next lower price.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Survival = Float64[np.ndarray, "_"]

# Neighbouring prices this close are as good as equal: the entries that pay the
# lower one are chosen so that the budget is met in any case.
_CLOSE = 1.1


def solve_priced(survival: Survival, price: int | float) -> list[int]:
  """The states of one entry that are worth a price.

  Maximises `sum_i ((s_i - s_{i-1}) G(s_i) - price)` over any number of states
  exactly; with as many states `solve_placement` finds no better places for
  them. With

      V(s) = max over r < s of  V(r) + (s - r) G(s) - price,   V(0) = 0

  every r is a line in G(s) with slope -r. Slopes and queries are monotone, so
  that a queue of the lines that are best somewhere takes O(N) in all.

  Args:
    survival: [N] G(s), the weight of the depths s and deeper, never increasing.
    price: what a state has to gain at least, in the units of depth times
      weight, >= 0.

  Returns:
    The depths in ascending order; of equally good choices, one of few states.

  >>> survival = np.array([10.0, 10.0, 9.0, 9.0, 9.0, 0.0])
  >>> solve_priced(survival, 30.0), solve_priced(survival, 0.5)
  ([4], [1, 4])
  """
  deeper = np.append(survival[1:], 0.0)
  # A state in the best choice gains more than the price over none at all.
  worth = np.arange(survival.size) * survival > price
  places = np.flatnonzero(worth & (survival > deeper))
  depths, values, before = [0], [0.0], [0]
  queue, best = [0], 0
  first = 0
  for depth, mass in zip(places.tolist(), survival[places].tolist()):
    while first + 1 < len(queue):
      a, b = queue[first], queue[first + 1]
      if values[b] - values[a] <= (depths[b] - depths[a]) * mass:
        break
      first += 1
    last = queue[first]
    value = values[last] + (depth - depths[last]) * mass - price
    node = len(values)
    depths.append(depth)
    values.append(value)
    before.append(last)
    best = node if value > values[best] else best
    while len(queue) - first > 1 and _hidden(
      queue[-2], queue[-1], node, depths, values
    ):
      queue.pop()
    queue.append(node)
  return _trace_back(best, depths, before)


def _hidden(
  a: int, b: int, c: int, depths: list[int], values: list[float]
) -> bool:
  """Whether line b is nowhere above both a and c; slopes fall from a to c."""
  rise, run = values[c] - values[a], depths[c] - depths[a]
  return rise * (depths[b] - depths[a]) >= (values[b] - values[a]) * run


def _trace_back(node: int, depths: list[int], before: list[int]) -> list[int]:
  """The depths on the way to a node, the one of node 0 left out."""
  found = []
  while node:
    found.append(depths[node])
    node = before[node]
  return found[::-1]


class CommonPrice(NamedTuple):
  """What a state has to gain to be kept.

  Attributes:
    low, high: prices; entries that all pay `low` keep more states than the
      budget on average, and no more than it if all pay `high`.
    share: of the entries that pay `low`.
  """

  low: float
  high: float
  share: float

  def of(self, number: int) -> float:
    """The price of the entry with this number; shares are spread evenly.

    >>> price = CommonPrice(1.0, 2.0, 0.25)
    >>> [price.of(number) for number in range(8)]
    [2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 1.0]
    """
    turns = math.floor((number + 1) * self.share)
    return self.low if turns > math.floor(number * self.share) else self.high


def common_price(
  survivals: Sequence[Survival], budget: int | float
) -> CommonPrice:
  """The price at which entries keep `budget` states each, on average.

  Args:
    survivals: [N] G(s) of each entry, at least one entry.
    budget: states per entry, >= 0, whole or not.

  Returns:
    The price; 0 where the budget is enough for every state of any use.

  >>> survival = np.array([4.0, 4.0, 4.0, 4.0])
  >>> price = common_price([survival] * 8, 0.5)  # all gains are equal: 12
  >>> sum(len(solve_priced(survival, price.of(n))) for n in range(8))
  4
  """

  def states(price: float) -> float:
    kept = sum(len(solve_priced(survival, price)) for survival in survivals)
    return kept / len(survivals)

  low, at_low, at_high = 0.0, states(0.0), 0.0
  if at_low <= budget:
    return CommonPrice(0.0, 0.0, 0.0)
  high = max(float(np.max(np.arange(s.size) * s)) for s in survivals)
  while at_high < budget and high > _CLOSE * low:
    middle = math.sqrt(low * high) if low else high / 16
    kept = states(middle)
    if kept > budget:
      low, at_low = middle, kept
    else:
      high, at_high = middle, kept
  return CommonPrice(low, high, (budget - at_high) / (at_low - at_high))
