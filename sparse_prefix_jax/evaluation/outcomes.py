"""What became of each request of a replay, and what was expected of it."""

from collections.abc import Iterable
from typing import NamedTuple


class Outcome(NamedTuple):
  """What a request found, and where its entry keeps states.

  Attributes:
    length: Prompt tokens.
    overlap: Tokens that equalled a known prefix: how deep it matched.
    restored: Tokens before the state that it resumed from, 0 for none.
    positions: Where states were kept for it, in tokens, ascending.
    expected: Tokens that it was expected to lose: when the entry was placed
      that it matched, or by what weighs all states before it came. None where
      its placement knows no overlaps, or nothing was matched.
    reason: Why it went no deeper; None unless a store was replayed.
  """

  length: int
  overlap: int
  restored: int
  positions: tuple[int, ...] = ()
  expected: float | None = None
  reason: str | None = None

  @property
  def lost(self) -> int:
    """Tokens that were known and are computed again all the same.

    >>> Outcome(length=100, overlap=80, restored=64).lost
    16
    """
    return max(self.overlap - self.restored, 0)


def expected_and_realised(
  outcomes: Iterable[Outcome], chunk: int
) -> tuple[float, int] | None:
  """Sums what placements expected to be lost, and what was, in whole chunks.

  Args:
    outcomes: Those without an expectation are left out of both sums.
    chunk: Tokens of a lattice block; what an overlap has of another one can be
      restored by no placement.

  Returns:
    Both sums in tokens; None where nothing was expected.

  >>> found = Outcome(length=200, overlap=150, restored=64, expected=32.0)
  >>> expected_and_realised([found, Outcome(100, 80, 0)], chunk=64)
  (32.0, 64)
  """
  told = [(one, one.expected) for one in outcomes if one.expected is not None]
  if not told:
    return None
  whole = (one.overlap // chunk * chunk - one.restored for one, _ in told)
  return sum(expected for _, expected in told), sum(max(x, 0) for x in whole)
