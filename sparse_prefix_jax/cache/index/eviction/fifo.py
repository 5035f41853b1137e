"""First in, first out, with a probation for superseded states."""

import collections
import itertools
from collections.abc import Collection, Iterator

from ..results import Match, Shortage
from ..tree import State


class Fifo:
  """The state that was stored longest ago goes first; a hit changes nothing.

  On probation, and first of all to go, are states of a prompt whose answer was
  stored with a state of its own: a conversation goes on from there. A hit ends
  the probation: somebody regenerates, or asks another question.
  """

  def __init__(self) -> None:
    """Starts without states."""
    # A plain dict would walk over its deleted front at every look-up.
    self._order: collections.OrderedDict[State, None] = (
      collections.OrderedDict()
    )
    self._probation: collections.OrderedDict[State, None] = (
      collections.OrderedDict()
    )

  def add(self, state: State) -> None:
    """Makes the state the newest."""
    self._order[state] = None

  def hit(self, state: State) -> None:
    """Ends its probation; the order of arrival stays as it is."""
    self._probation.pop(state, None)

  def demote(self, state: State) -> None:
    """Puts it on probation, behind those that are on it already."""
    self._probation.setdefault(state)

  def remove(self, state: State) -> None:
    """Forgets the state; KeyError if it is not stored."""
    del self._order[state]
    self._probation.pop(state, None)

  @property
  def offered(self) -> int:
    """None: whatever is placed is taken."""
    return 0

  def proposes(self, match: Match, blocks: int) -> Collection[int]:
    """Nothing: the placement says what is kept."""
    return ()

  def victim(self, short: Shortage) -> State:
    """The oldest on probation, else the oldest, that no pin holds.

    Args:
      short: It goes first whatever is missing.

    Raises:
      StopIteration: Pins hold all of them.
    """
    waiting = itertools.chain(self._probation, self._order)
    return next(state for state in waiting if not state.pins)

  def check(self) -> None:
    """Compares the two orders; for tests.

    Raises:
      AssertionError: If a state is on probation that is not stored.
    """
    stored = self._probation.keys() <= self._order.keys()
    assert stored, "a state is on probation that is not stored."

  def __iter__(self) -> Iterator[State]:
    """All states, those on probation first, then by age."""
    rest = (state for state in self._order if state not in self._probation)
    return itertools.chain(self._probation, rest)

  def __len__(self) -> int:
    """How many states there are."""
    return len(self._order)

  def __contains__(self, state: object) -> bool:
    """Whether the state is stored."""
    return state in self._order
