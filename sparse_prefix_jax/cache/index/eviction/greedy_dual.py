"""What a state spares, over a clock that rises with every victim."""

from collections.abc import Sequence

from ..results import Shortage
from ..tree import State
from .ranked import Ranked


class GreedyDual(Ranked):
  """Greedy-dual: a state that is used is worth what it spares from now on.

  Its priority is the clock plus the blocks that only it spares, set when it is
  stored and when it is hit; the clock is the priority of the last victim, so
  that what is not used goes some day.
  """

  def __init__(self) -> None:
    """Starts without states."""
    super().__init__()
    self._clock = 0.0
    self._priority: dict[State, float] = {}

  def add(self, state: State) -> None:
    """Sets its priority."""
    super().add(state)
    self.hit(state)

  def hit(self, state: State) -> None:
    """Sets its priority anew."""
    self._priority[state] = self._clock + self.spared(state)

  def remove(self, state: State) -> None:
    """Forgets the state; KeyError if it is not stored."""
    super().remove(state)
    del self._priority[state]

  def victim(self, short: Shortage) -> State:
    """The state of the lowest priority that no pin holds; the clock follows."""
    state = super().victim(short)
    self._clock = max(self._clock, self._priority[state])
    return state

  def ranks(self, states: Sequence[State]) -> Sequence[float]:
    """The priorities."""
    return [self._priority[state] for state in states]
