"""What the placement of a store expects requests to compute again.

It is asked when sequences end, so that no prompt waits for it, and what it said
of an entry lives with the entry.
"""

from collections.abc import Iterable

from sparse_prefix_jax.cache.index import Match
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.placement import Planner


class Expectations:
  """What is expected of entries, or of the next prompt, whoever it matches.

  Args:
    planner: What is asked; one that weighs all states says it of any prompt.
    chunk: Tokens of a chunk, c.
  """

  def __init__(self, planner: Planner, chunk: int) -> None:
    """Expects nothing yet."""
    self._planner, self._chunk = planner, chunk
    self._next = 0.0

  def of(self, match: Match) -> float | None:
    """Tokens that a prompt is expected to lose; None where nobody can tell.

    Args:
      match: What is known of it, before anything changes.
    """
    if self._planner.worth is not None:
      return self._next
    latest = match.deepest.latest if match.deepest else None
    return latest.expected_lost if latest else None

  def note(self, running: Running) -> None:
    """Asks what will be lost now that a sequence has ended.

    Args:
      running: Closed.
    """
    worth, entry = self._planner.worth, running.entry
    if worth is not None:
      self._next = worth.expected_lost()
    elif entry is not None and running.features is not None:
      entry.expected_lost = self._planner.expected_lost(
        self._positions(entry.states), running.features
      )

  def _positions(self, depths: Iterable[int]) -> list[int]:
    """Depths in tokens."""
    return [self._chunk * depth for depth in depths]
