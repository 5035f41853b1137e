"""How often something was seen at each of 513 places, lately."""

import numpy as np

FARTHEST = 512
"""Whatever lies at this place or beyond is counted as one."""

_DECAY = 0.998


class FadingCounts:
  """Counts of places in blocks, which fade as others are seen.

  Attributes:
    counts: float64 [513], how often each was seen; the last one has all places
      from 512 on.
  """

  def __init__(self) -> None:
    """Starts with counts of nothing."""
    self.counts = np.zeros(FARTHEST + 1)

  def observe(self, place: int) -> None:
    """Lets all counts fade, then counts one place.

    Args:
      place: Blocks, not negative.
    """
    self.counts *= _DECAY
    self.counts[min(place, FARTHEST)] += 1
