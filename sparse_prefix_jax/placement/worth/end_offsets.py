"""How far before the end of a prompt later ones leave it: `EndOffsets`.

The next turn of a conversation often does not repeat the end of the last prompt
(a generation prompt, thinking that is stripped): it leaves it a few blocks
before the end, again and again as many. Where requests leave what is known is
counted from the end of the last prompt that went through there, and the two
distances are chosen that spare most.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from sparse_prefix_jax.placement.worth.fading_counts import (
  FARTHEST,
  FadingCounts,
)

_LEAST_WEIGHT = 0.05
# What an overlap without a state costs, in blocks per largest offset.
_WITHOUT = 4
_CHOSEN = 2


class EndOffsets(FadingCounts):
  """Counts of offsets in blocks; 0 is the end itself.

  >>> offsets = EndOffsets()
  >>> for offset in (3, 3, 3, 9):
  ...   offsets.observe(offset)
  >>> offsets.best()
  (9, 3)
  """

  def best(self) -> tuple[int, ...]:
    """Returns the at most two offsets to keep states at, the largest first.

    An overlap at offset z uses the smallest chosen one that is not below z, and
    costs the distance to it; without one it costs four times the largest
    offset that was seen.
    """
    heavy = np.flatnonzero(self.counts[1:FARTHEST] > _LEAST_WEIGHT)
    if not heavy.size:
      return ()
    return best_offsets(self.counts[1 : heavy[-1] + 2], _CHOSEN)


class _Choice(NamedTuple):
  """Offsets, the largest first, and what overlaps cost with them."""

  cost: float
  offsets: tuple[int, ...]


def best_offsets(
  counts: Float64[np.ndarray, "n"], most: int
) -> tuple[int, ...]:
  """Chooses offsets by an exact dynamic program.

  Args:
    counts: How often each of the offsets 1 to n was seen.
    most: How many offsets may be chosen.

  Returns:
    Offsets, the largest first; of equally good choices one with the fewest.

  >>> best_offsets(np.array([0.0, 5.0, 0.0, 1.0]), 1)
  (4,)
  """
  size = counts.size
  weight = np.concatenate([[0.0], np.cumsum(counts)])
  moment = np.concatenate([[0.0], np.cumsum(counts * np.arange(1, size + 1))])
  without = float(_WITHOUT * size)
  ends = np.arange(size + 1)
  # [y, z]: what overlaps at offsets y + 1 to z cost with a state at z.
  spread_out = ends * (weight - weight[:, None]) - (moment - moment[:, None])
  spread_out[ends[:, None] >= ends] = np.inf
  beyond = without * (weight[-1] - weight)
  best = _Choice(without * weight[-1], ())
  covered, previous = np.where(ends == 0, 0.0, np.inf), []
  for _ in range(most):
    sums = covered[:, None] + spread_out
    previous.append(sums.argmin(axis=0))
    covered = sums.min(axis=0)
    best = _better(best, covered + beyond, previous)
  return best.offsets


def _better(
  best: _Choice, costs: Float64[np.ndarray, "n"], previous: list[np.ndarray]
) -> _Choice:
  """The best choice with one more offset, if it is better than without."""
  last = int(costs.argmin())
  if not costs[last] < best.cost - 1e-9:
    return best
  offsets = [last]
  for step in reversed(previous[1:]):
    offsets.append(int(step[offsets[-1]]))
  return _Choice(float(costs[last]), tuple(offsets))
