"""Least recently used, with states where prompts leave what is known."""

from collections.abc import Collection

from ..results import Match
from ..tree import State
from .lru import Lru


class BranchLru(Lru):
  """As `lru`, but prompts keep a state where they leave what is known.

  What one prompt has left there another one may leave as well. Whoever resumes
  deeper has used the states above too, so these become the youngest with it.
  """

  def proposes(self, match: Match, blocks: int) -> Collection[int]:
    """Where the prompt leaves what is known, if that is within it."""
    return [match.overlap_blocks] if 0 < match.overlap_blocks < blocks else []

  def hit(self, state: State) -> None:
    """Makes it and all states above it the youngest, the deepest most."""
    used = [node.state for node in state.node.upwards()]
    for one in reversed(used):
      if one is not None and one in self:
        super().hit(one)
