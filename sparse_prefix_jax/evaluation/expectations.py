"""What the placement of a store expects requests to compute again."""

from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.cache.store import PrefixStore


class Expectations:
  """What was expected of each entry as it was placed, until a prompt matches.

  A placement that weighs all states says it before every prompt instead.
  """

  def __init__(self, store: PrefixStore) -> None:
    """Knows no entry.

    Args:
      store: Whose placement is asked.
    """
    self._store = store
    self._of_entries: dict[int, float | None] = {}

  def ahead(self) -> float | None:
    """Tokens that the next prompt will lose, by what weighs all states."""
    worth = self._store.planner.worth
    return None if worth is None else worth.expected_lost()

  def of(self, served: Running | None) -> float | None:
    """Tokens that a request was expected to lose, by the entry it matched.

    Args:
      served: The request; None where it was refused.
    """
    if served is None or not served.match.overlap_blocks:
      return None
    matched = served.match.features
    return None if matched is None else self._of_entries.get(matched.born)

  def note(self, served: Running | None) -> None:
    """Asks what will be lost of the entry that a request has left.

    Args:
      served: The request, closed; None where it was refused.
    """
    if served is None or served.entry is None or served.features is None:
      return
    chunk, features = self._store.chunk, served.features
    positions = [chunk * depth for depth in served.entry.states]
    self._of_entries[features.born] = self._store.planner.expected_lost(
      positions, features
    )
