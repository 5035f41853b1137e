"""Rules that give every state a rank: the lowest goes first."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sparse_prefix_jax.kinds import brief

from ..results import Match, Shortage
from ..tree import State


class Ranked:
  """States in the order of a rank that `ranks` gives; a base of rules.

  Whoever derives from it says `ranks` anew, and may say more: `hit` to note
  that a state was used, `proposes` to admit states that no placement asks for.

  >>> class Shallow(Ranked):
  ...   def ranks(self, states):
  ...     return [state.node.depth for state in states]
  >>> list(Shallow())
  []
  """

  def __init__(self) -> None:
    """Starts without states."""
    self._above: dict[State, State | None] = {}
    self._below: dict[State | None, dict[State, None]] = {None: {}}

  def ranks(self, states: Sequence[State]) -> Sequence[float]:
    """Returns the rank of each state; of equals the one stored first goes.

    What has no order, as NaN, is refused when a state has to go.

    Args:
      states: Stored ones, in the order in which they were stored, which is
        their rank unless a rule says another.
    """
    return range(len(states))

  def proposes(self, match: Match, blocks: int) -> Collection[int]:
    """Returns depths in blocks that a prompt keeps besides the placement's.

    Args:
      match: What is stored of it.
      blocks: Its whole blocks.
    """
    return ()

  def above(self, state: State) -> State | None:
    """Returns the nearest stored state on the way to one, None for none."""
    return self._above[state]

  def below(self, state: State) -> Collection[State]:
    """Returns the stored states that are next below one."""
    return self._below[state].keys()

  def spared(self, state: State) -> int:
    """Returns the blocks that only this state spares who resumes from it."""
    above = self._above[state]
    return state.node.depth - (above.node.depth if above else 0)

  def add(self, state: State) -> None:
    """Takes in a state that was just stored."""
    ways = (node.state for node in state.node.upwards())
    above = next((s for s in ways if s in self._above), None)
    node, mine = state.node, list[State]()
    if node.above_states:
      others = self._below[above]
      mine = [o for o in others if o.node.at_depth(node.depth) is node]
    self._above[state], self._below[state] = above, dict.fromkeys(mine)
    self._below[above][state] = None
    for other in mine:
      self._above[other] = state
      del self._below[above][other]

  def hit(self, state: State) -> None:
    """Notes that a request resumes from a state."""

  def demote(self, state: State) -> None:
    """Changes nothing: there is no probation."""

  def remove(self, state: State) -> None:
    """Forgets the state; KeyError if it is not stored."""
    above, below = self._above.pop(state), self._below.pop(state)
    del self._below[above][state]
    for other in below:
      self._above[other] = above
      self._below[above][other] = None

  @property
  def offered(self) -> int:
    """None: whatever is placed is taken."""
    return 0

  def victim(self, short: Shortage) -> State:
    """The state of the lowest rank that no pin holds.

    Args:
      short: It goes first whatever is missing.

    Raises:
      StopIteration: Pins hold all of them.
    """
    return next(state for state in self if not state.pins)

  def check(self) -> None:
    """Finds the states above others anew; for tests.

    Raises:
      AssertionError: If one is another than is known.
    """
    for state, above in self._above.items():
      ways = [node.state for node in state.node.upwards()][1:]
      found = next((other for other in ways if other), None)
      assert found is above, "a state has another one above it."
      assert state in self._below[above], "a state is missing below another."

  def __iter__(self) -> Iterator[State]:
    """All states, the one of the lowest rank first."""
    states = (*self._above,)  # Nobody else can put them in another order.
    if not states:
      return iter(())
    return iter(
      [states[i] for i in _ascending(self.ranks(states), len(states))]
    )

  def __len__(self) -> int:
    """How many states there are."""
    return len(self._above)

  def __contains__(self, state: object) -> bool:
    """Whether the state is stored."""
    return state in self._above


def _ascending(ranks: Any, count: int) -> list[int]:
  """Returns the places of ranks, the lowest first.

  Raises:
    ValueError: If there is not one for each state, or they have no order.
  """
  if not hasattr(ranks, "__len__") or len(ranks) != count:
    raise ValueError(
      f"ranks must return one rank for each of {count} states, got {ranks!r}."
    )
  try:
    given = [ranks[place] for place in range(count)]
    # NaN differs from itself.
    ordered = not any(rank != rank for rank in given)
    places = sorted(range(count), key=given.__getitem__)
  except (TypeError, ValueError, LookupError):
    ordered, places = False, []
  if not ordered:
    raise ValueError(
      f"ranks must return numbers that have an order, got {brief(ranks)}."
    )
  return places
