"""How often each offset was seen, for the few offsets that were: `Offsets`.

A histogram over all offsets of a long prompt would be thousands of bins wide,
nearly all of them empty, and every request would have to walk through it. So
only offsets that were seen are kept, in order, and time and memory grow with
their number.

One offset is looked up by `bisect`: `np.searchsorted` hands the interpreter to
other threads, and a request would wait there for a plan that is being made.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

# Offsets that are kept; the lightest go first. With a decay of 0.99 what is
# beyond them would weigh less than 0.6 % of the newest observation.
_MOST = 512


class Offsets(NamedTuple):
  """Decayed counts of offsets; no method changes it, each returns a new one.

  Attributes:
    where: int64 [K], the offsets in ascending order.
    counts: float64 [K], how often each was seen.
    others: how often offsets were seen that are no longer kept.
  """

  where: Int64[np.ndarray, "K"]
  counts: Float64[np.ndarray, "K"]
  others: float = 0.0

  @classmethod
  def create(cls) -> "Offsets":
    """Returns counts of nothing."""
    return cls(np.zeros(0, np.int64), np.zeros(0, np.float64))

  def observe(self, offset: int, weight: float, decay: float) -> "Offsets":
    """Lets all counts fade, then counts one offset.

    Args:
      offset: What was seen, of either sign.
      weight: How much it counts, not negative.
      decay: What is left of every earlier count, in (0, 1].

    Returns:
      The new counts.

    >>> Offsets.create().observe(-3, 1.0, 0.5).observe(4, 1.0, 0.5)
    Offsets(where=array([-3,  4]), counts=array([0.5, 1. ]), others=0.0)
    """
    faded, others = self.counts * decay, self.others * decay
    if not weight:
      return Offsets(self.where, faded, others)
    place = bisect_left(self.where, offset)
    if place < self.where.size and self.where[place] == offset:
      faded[place] += weight
      return Offsets(self.where, faded, others)
    where = _inserted(self.where, place, offset)
    counts = _inserted(faded, place, weight)
    if where.size <= _MOST:
      return Offsets(where, counts, others)
    # The newcomer stays: it has not had the time to be seen again.
    lightest = int(np.argmin(_inserted(faded, place, np.inf)))
    others += float(counts[lightest])
    return Offsets(
      np.delete(where, lightest), np.delete(counts, lightest), others
    )

  def count(self, offset: int) -> float:
    """Returns how often an offset was seen.

    Args:
      offset: Of either sign.

    >>> Offsets.create().observe(4, 1.0, 0.5).count(4)
    1.0
    """
    place = bisect_left(self.where, offset)
    if place == self.where.size or self.where[place] != offset:
      return 0.0
    return float(self.counts[place])

  def between(self, low: int, high: int) -> "Offsets":
    """Returns the part from `low` to `high`, both included.

    Args:
      low: The least offset.
      high: The largest offset.

    >>> Offsets.create().observe(4, 1.0, 0.5).between(5, 9).counts.size
    0
    """
    first = bisect_left(self.where, low)
    end = bisect_right(self.where, high)
    return Offsets(self.where[first:end], self.counts[first:end], self.others)

  def tails(self) -> Float64[np.ndarray, "_"]:
    """Returns how often the offsets from each of `where` on were seen, and 0.

    >>> Offsets.create().observe(4, 1.0, 0.5).tails()
    array([1., 0.])
    """
    tails = np.zeros(self.counts.size + 1)
    np.cumsum(self.counts[::-1], out=tails[-2::-1])
    return tails


def _inserted(values: np.ndarray, place: int, value: int | float) -> np.ndarray:
  """The values with one more; faster than `np.insert` for short arrays."""
  new = np.empty(values.size + 1, values.dtype)
  new[:place], new[place], new[place + 1 :] = (
    values[:place],
    value,
    values[place:],
  )
  return new
