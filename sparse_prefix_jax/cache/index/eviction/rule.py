"""The interface of every rule of eviction and admission."""

from collections.abc import Collection, Iterator
from typing import Protocol, runtime_checkable

from ..results import Match, Shortage
from ..tree import State


@runtime_checkable
class EvictionRule(Protocol):
  """An order of eviction over the stored states, first victim first.

  It may also admit states that no placement asks for. `Ranked` and `Lru` have
  all of it, to derive from.
  """

  @property
  def offered(self) -> int:
    """States that are weighed against those stored, a slot each.

    A rule that takes whatever is placed has none.
    """
    ...

  def proposes(self, match: Match, blocks: int) -> Collection[int]:
    """Depths in blocks that a prompt keeps besides the placement's.

    Args:
      match: What is stored of it.
      blocks: Its whole blocks; a depth is at most so many.
    """
    ...

  def add(self, state: State) -> None:
    """Takes in a state that was just stored."""

  def hit(self, state: State) -> None:
    """Notes that a request resumes from a state."""

  def demote(self, state: State) -> None:
    """Puts a state on probation: a longer turn that holds one is stored."""

  def remove(self, state: State) -> None:
    """Forgets a state."""

  def victim(self, short: Shortage) -> State | None:
    """The next state to evict; there must be one that no pin holds.

    Args:
      short: What room is missing.

    Returns:
      The state, or None where a state that was only offered goes in its place.
    """
    ...

  def check(self) -> None:
    """Raises AssertionError if what it knows contradicts itself; for tests."""

  def __iter__(self) -> Iterator[State]:
    """All states, the first victim first."""
    ...

  def __len__(self) -> int:
    """How many states there are."""
    ...

  def __contains__(self, state: object) -> bool:
    """Whether a state is stored."""
    ...
