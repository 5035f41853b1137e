"""The interface of every eviction rule."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from ..tree import State


@runtime_checkable
class EvictionRule(Protocol):
  """An order of eviction over the stored states, first victim first."""

  def add(self, state: State) -> None:
    """Takes in a state that was just stored."""

  def hit(self, state: State) -> None:
    """Notes that a request resumes from a state."""

  def demote(self, state: State) -> None:
    """Puts a state on probation: a longer turn that holds one is stored."""

  def remove(self, state: State) -> None:
    """Forgets a state."""

  def victim(self) -> State:
    """The next state to evict; there must be one that no pin holds."""
    ...

  def __iter__(self) -> Iterator[State]:
    """All states, the first victim first."""
    ...

  def __len__(self) -> int:
    """How many states there are."""
    ...

  def __contains__(self, state: object) -> bool:
    """Whether a state is stored."""
    ...
