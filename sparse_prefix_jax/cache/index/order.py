"""The rule of an index, and a new one in its place where it fails.

A rule is somebody's own code, and whatever is raised inside of it (a
MemoryError, a Ctrl-C) may leave it half changed. So it is not used any more
then: when the verb that was under way has finished, a new rule learns of every
stored state, and only then the exception is raised.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator

from .eviction import EvictionRule, Worth
from .results import Match, Shortage
from .tree import State

_NOBODY = "eviction: victim named no state and took no offer back."


class Order:
  """A rule that agrees with the trees between any two verbs.

  What tells a rule of a change raises when the verb has finished, what asks it
  for something at once.

  Args:
    rule: What orders states.
    renew: Makes another one that knows no state; None where nobody can.
    stored: All states of the trees, those above others first.

  Attributes:
    rule: What orders states now.
    lost: Whether it failed and no new one could be made.
  """

  def __init__(
    self,
    rule: EvictionRule,
    renew: Callable[[], EvictionRule] | None,
    stored: Callable[[], Iterable[State]],
  ) -> None:
    """Trusts the rule."""
    self.rule, self.lost = rule, False
    self._renew, self._stored = renew, stored
    self._trusted, self._depth = True, 0
    self._failure: BaseException | None = None

  @property
  def worth(self) -> Worth | None:
    """The rule, if it weighs what a prompt might keep."""
    return self.rule if isinstance(self.rule, Worth) else None

  @contextlib.contextmanager
  def finishing(self) -> Iterator[None]:
    """A verb, perhaps of several: a rule is replaced when the outermost ends.

    Raises:
      BaseException: What the rule raised meanwhile.
    """
    self._depth += 1
    try:
      yield
    finally:
      self._depth -= 1
      if self._depth == 0:
        self._mend()
        self.raise_failure()

  def raise_failure(self) -> None:
    """Raises what the rule raised, if that waits to be raised; once."""
    failure, self._failure = self._failure, None
    if failure is not None:
      raise failure

  @contextlib.contextmanager
  def asked(self) -> Iterator[EvictionRule]:
    """The rule, to ask for something: what it raises is raised at once."""
    self.raise_failure()
    with self.finishing():
      try:
        yield self.rule
      except BaseException:
        self._trusted = False
        raise

  def add(self, state: State) -> None:
    """Takes in a state that was just stored."""
    self._tell(lambda rule: rule.add(state))

  def remove(self, state: State) -> None:
    """Forgets a state that is about to go."""
    self._tell(lambda rule: rule.remove(state))

  def demote(self, state: State) -> None:
    """Puts a state on probation."""
    self._tell(lambda rule: rule.demote(state))

  def cancel(self, owner: int) -> None:
    """What a sequence was to capture does not come any more.

    Args:
      owner: Its number.
    """
    if self.worth is not None:
      self._tell(lambda rule: isinstance(rule, Worth) and rule.cancel(owner))

  def hit(self, state: State) -> None:
    """Notes that a request resumes from a state."""
    with self.asked() as rule:
      rule.hit(state)

  def proposes(self, match: Match, blocks: int) -> Collection[int]:
    """Depths that a prompt keeps besides the placement's.

    Args:
      match: What is stored of it.
      blocks: Its whole blocks.
    """
    with self.asked() as rule:
      return rule.proposes(match, blocks)

  @property
  def offered(self) -> int:
    """States that are weighed against those stored."""
    return self.rule.offered

  def victim(self, short: Shortage, stored: Collection[State]) -> State | None:
    """The next state to evict; a rule that names no such state has failed.

    Args:
      short: What room is missing.
      stored: All states of the trees.

    Returns:
      The state, or None where an offer was taken back.

    Raises:
      ValueError: If the rule names nothing, or what may not go.
    """
    with self.asked() as rule:
      offered = rule.offered
      try:
        state = rule.victim(short)
      except StopIteration as ended:
        raise ValueError(_NOBODY) from ended
      if state is None and rule.offered >= offered:
        raise ValueError(_NOBODY)
      if state is not None and state not in stored:
        raise ValueError(
          "eviction: victim named a state that this cache does not hold; every "
          "cache needs a rule of its own."
        )
      if state is not None and state.pins:
        raise ValueError(
          f"eviction: victim named the state at depth {state.node.depth}, "
          "which a running sequence holds."
        )
    return state

  def reconsider(self, fits: Callable[[int], bool]) -> None:
    """Room was made, perhaps more than was missing: for what was turned down.

    Args:
      fits: Whether there is room for so many offers.
    """
    if self.worth is None:
      return
    with self.asked() as rule:
      if isinstance(rule, Worth):
        rule.reconsider(fits)

  def _tell(self, change: Callable[[EvictionRule], object]) -> None:
    """Tells the rule of a change; one that has failed needs to know no more."""
    if not self._trusted:
      return
    try:
      change(self.rule)
    except BaseException as failure:
      self._trusted, self._failure = False, failure

  def _mend(self) -> None:
    """Lets a new rule take the place of one that failed."""
    if self._trusted or self.lost:
      return
    try:
      if self._renew is None:
        raise ValueError("eviction: the rule failed and cannot be made anew.")
      rule = self._renew()
      for state in self._stored():
        rule.add(state)
    except BaseException as failure:
      self.lost, self._failure = True, self._failure or failure
      return
    self.rule, self._trusted = rule, True
