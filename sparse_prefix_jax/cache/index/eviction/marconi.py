"""Recency and what a state spares, weighed against each other: Marconi."""

from collections.abc import Collection, Sequence

import numpy as np

from ..results import Match
from ..tree import State
from .ranked import Ranked


class Marconi(Ranked):
  """The rule of "Marconi: Prefix Caching for the Era of Hybrid LLMs" (2025).

  It evicts the state of the smallest

      norm(1 / (now + 1 - last use)) + alpha * norm(blocks that it spares)

  among those with at most one state next below them; `norm` maps the least to 0
  and the most to 1. Prompts keep a state where they leave what is known. The
  paper counts operations where this counts blocks, and tries several alphas.

  Args:
    alpha: Weight of what is spared.
  """

  def __init__(self, alpha: float = 1.0) -> None:
    """Starts without states."""
    super().__init__()
    self._alpha, self._now = alpha, 0
    self._used: dict[State, int] = {}

  def proposes(self, match: Match, blocks: int) -> Collection[int]:
    """Where the prompt leaves what is known, if that is within it."""
    return [match.overlap_blocks] if 0 < match.overlap_blocks < blocks else []

  def add(self, state: State) -> None:
    """Counts as a use."""
    super().add(state)
    self.hit(state)

  def hit(self, state: State) -> None:
    """Notes when it was used."""
    self._now += 1
    self._used[state] = self._now

  def remove(self, state: State) -> None:
    """Forgets the state; KeyError if it is not stored."""
    super().remove(state)
    del self._used[state]

  def ranks(self, states: Sequence[State]) -> Sequence[float]:
    """The sum above; those with more than one state next below go last."""
    ages = np.array([self._now + 1 - self._used[s] for s in states])
    spared = np.array([float(self.spared(s)) for s in states])
    forks = np.array([len(self.below(s)) > 1 for s in states])
    sums = _norm(1 / ages) + self._alpha * _norm(spared)
    return np.where(forks, np.inf, sums).tolist()


def _norm(values: np.ndarray) -> np.ndarray:
  """Values from 0 to 1; all 0 where they are alike."""
  span = np.ptp(values)
  return (values - values.min()) / span if span else np.zeros(values.size)
