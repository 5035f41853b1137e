"""How often something was seen at each of 513 places, lately."""

import numpy as np

from sparse_prefix_jax.placement.worth.regime import STILL_COUNTED, News

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
    self._since, self._former = np.zeros((2, FARTHEST + 1))

  def observe(self, place: int) -> None:
    """Lets all counts fade, then counts one place.

    Args:
      place: Blocks, not negative.
    """
    for counts in (self.counts, self._since):
      counts *= _DECAY
      counts[min(place, FARTHEST)] += 1

  def hear(self, news: News) -> None:
    """Puts aside what was counted before the mark, or counts it again.

    Args:
      news: What a regime has found, whose mark is this one's as well.
    """
    if news is News.CHANGED:
      aside = (1 - STILL_COUNTED) * np.maximum(self.counts - self._since, 0.0)
      self.counts, self._former = self.counts - aside, self._former + aside
    if news is News.RETURNED:
      self.counts = self.counts + self._former
      self._former = np.zeros(FARTHEST + 1)
    if news is not News.SUSPECTED:
      self._since = np.zeros(FARTHEST + 1)
