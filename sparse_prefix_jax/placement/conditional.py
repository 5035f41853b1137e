"""Where an entry will be left, given what is known of it: `Conditional`.

A later request that matches an entry leaves it at some depth t, its overlap.
Production traces say that t is a mixture of atoms with a thin tail (DESIGN
section 5): the end of the entry (a conversation goes on, the next question is
as short as the last one), the depth at which the entry itself left what it
matched (both ask about one document), and depths that all share (a system
prompt). One histogram over absolute depth smears the first two. So offsets are
counted from three origins,

    p(t | entry) = sum over k of  share_k(class) h_k(t - origin_k),
    origin = 0, the entry's own overlap, its end,

each h_k with a uniform rest for what was never seen. Which origin explains an
overlap is not observed; shares and histograms learn by responsibilities, one
step of expectation maximisation per overlap, so that an offset which recurs
from one origin soon belongs to that origin. Classes are entries that matched
nothing and entries that did.

How often an entry will be left at all depends on how long ago the entry that it
matched was stored: whoever follows a popular or an old one is needed sooner.
Rates are counted by that age, in powers of two. Rate times p are the weights of
the placement problem of one entry, and one price (`priced`) serves all.

Nothing here looks at tokens or knows a tenant, and nothing looks ahead.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.priced import (
  CommonPrice,
  Survival,
  common_price,
  solve_priced,
)

# Entries over which a price spends the budget.
_WINDOW = 64

# Overlaps that the uniform rest of a histogram is worth.
_REST = 0.5

# Bins of ages: bin b for ages below 2**b, bin 0 for entries without a match.
_AGES = 64


class Features(NamedTuple):
  """What is known of an entry when it is placed.

  Attributes:
    length: its tokens.
    overlap: how many of them equalled a stored prefix, 0 for none.
    age: requests observed since the entry was placed that it matched; 0
      where it matched none, or none that is known.
    born: requests observed before it was placed.
  """

  length: int
  overlap: int = 0
  age: int = 0
  born: int = 0


class Conditional:
  """Statistics of where entries are left, and a price for states.

  Attributes:
    chunk: tokens per depth bin.
    budget: states per entry, on average over entries.
    observations: overlaps observed, misses included.

  >>> planner = Conditional(budget=1, chunk=64, depths=32)
  >>> for born in range(8):  # every prompt ends in a question of a chunk
  ...   entry = Features(length=640, born=born)
  ...   planner.observe(576, entry=entry, matched=entry)
  >>> planner.depths(Features(length=640))
  [9]
  """

  def __init__(
    self, *, budget: int | float, chunk: int, depths: int, decay: float = 0.99
  ) -> None:
    """Starts without statistics.

    Args:
      budget: states per entry, >= 0; a fraction is an average like any other.
      chunk: tokens per depth bin.
      depths: number of depth bins N, at least 2; what lies deeper counts in
        the last.
      decay: what an observation leaves of the rates, and an overlap of the
        other statistics.
    """
    self.budget, self.chunk = budget, chunk
    self.observations = 0
    self._decay, self._last = decay, depths - 1
    # Offsets from -N to N, by origin; the middle is 0.
    self._counts = np.zeros((3, 2 * depths), np.float64)
    # By class: without a match the second origin is the first.
    self._shares = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    self._left = np.zeros(_AGES, np.float64)
    self._entries = np.zeros(_AGES, np.float64)
    self._recent: deque[Features] = deque(maxlen=_WINDOW)
    self._price: CommonPrice | None = None

  def observe(
    self, overlap: int, *, entry: Features, matched: Features | None
  ) -> None:
    """Learns from one request.

    Args:
      overlap: its leading tokens that equal a stored prefix.
      entry: of the entry that it leaves.
      matched: of the entry that it matched; None for none, or one unknown.
    """
    self.observations += 1
    self._left *= self._decay
    self._entries *= self._decay
    self._entries[_age_bin(entry)] += 1.0
    self._recent.append(entry)
    if matched is not None and min(overlap, matched.length) >= self.chunk:
      self._left[_age_bin(matched)] += 1.0
      self._learn(overlap, matched)

  def _learn(self, overlap: int, matched: Features) -> None:
    """One step of expectation maximisation for the depth of an overlap."""
    origins = self._origins(matched)
    depth = min(overlap // self.chunk, int(origins[-1]))
    shares = self._shares[self._class(matched)]
    likely = shares * self._densities(origins)[:, depth - 1]
    blame = likely / likely.sum()
    shares *= self._decay
    shares += blame
    self._counts *= self._decay
    middle = self._counts.shape[1] // 2
    self._counts[np.arange(3), depth - origins + middle] += blame

  def _class(self, features: Features) -> int:
    """0 for an entry that matched no whole chunk, else 1."""
    return int(features.overlap >= self.chunk)

  def _origins(self, features: Features) -> Int64[np.ndarray, "3"]:
    """Depth bins that offsets are counted from; the last is the entry's end."""
    end = min(features.length // self.chunk, self._last)
    return np.array([0, min(features.overlap // self.chunk, end), end])

  def _densities(
    self, origins: Int64[np.ndarray, "3"]
  ) -> Float64[np.ndarray, "3 end"]:
    """Each origin's distribution over the depths 1 .. end."""
    depths = np.arange(1, origins[-1] + 1)
    offsets = depths - origins[:, None] + self._counts.shape[1] // 2
    counts = np.take_along_axis(self._counts, offsets, axis=1)
    total = counts.sum(axis=1, keepdims=True)
    return (counts + _REST / depths.size) / (total + _REST)

  def rate(self, features: Features) -> float:
    """How many requests will match an entry like this, up to a factor.

    Entries whose time is not over yet are counted like the others, which makes
    every rate too small by about as much; only their ratios matter.
    """
    known = _age_bin(features)
    every = (self._left.sum() + 0.5) / (self._entries.sum() + 1.0)
    return float((self._left[known] + every) / (self._entries[known] + 1.0))

  def survival(self, features: Features) -> Survival:
    """G(s): requests that will leave an entry at depth s or deeper.

    Args:
      features: of the entry.

    Returns:
      float64 [N], N - 1 its last whole chunk; index = depth in chunks.

    >>> planner = Conditional(budget=1, chunk=64, depths=8)
    >>> planner.survival(Features(length=128))
    array([0.5 , 0.5 , 0.25])
    """
    origins = self._origins(features)
    shares = self._shares[self._class(features)]
    weights = self.rate(features) * (shares / shares.sum())
    density = weights @ self._densities(origins) if origins[-1] else np.zeros(0)
    return np.cumsum(np.append(0.0, density)[::-1])[::-1]

  def plan(self) -> None:
    """Finds the price at which the last entries would keep the budget."""
    survivals = [self.survival(features) for features in self._recent]
    self._price = common_price(survivals, self.budget) if survivals else None

  def depths(self, features: Features) -> list[int]:
    """Where an entry should keep states, in chunks, ascending.

    Makes a plan first if there is none. The features alone decide, until the
    next observation or plan.

    Args:
      features: of the entry.
    """
    if self._price is None:
      self.plan()
    if self._price is None or not self.budget:
      return []
    price = self._price.of(features.born)
    return solve_priced(self.survival(features), price)


def _age_bin(features: Features) -> int:
  """Powers of two.

  >>> [_age_bin(Features(1, age=age)) for age in (0, 1, 2, 3, 4)]
  [0, 1, 2, 2, 3]
  """
  return min(features.age.bit_length(), _AGES - 1)
