"""What all verbs of a store have in common: entirely, or not at all.

Only `cache/store.py` and `cache/store_view.py` call this module.
"""

import functools
import gc
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

from sparse_prefix_jax.cache.index import (
  Budget,
  Eviction,
  EvictionRule,
  PrefixIndex,
  rule_for,
)
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.placement import Planner
from sparse_prefix_jax.placement.worth import Adaptive

LOST = "the rule of eviction of its cache failed, and so did a new one"
"""What handles say of sequences whose store had to start empty."""


@runtime_checkable
class Store(Protocol):
  """What has verbs."""

  index: PrefixIndex

  def start_over(self, why: str) -> None:
    """Starts empty with a new index, running sequences included.

    Args:
      why: What their handles say from here on.
    """

  def held(self, running: Running) -> Running:
    """A sequence that has not ended; others are refused.

    Args:
      running: The sequence.
    """
    ...


_Owner = TypeVar("_Owner", bound=Store)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def entirely(
  verb: Callable[Concatenate[_Owner, _Given], _Result],
) -> Callable[Concatenate[_Owner, _Given], _Result]:
  """Lets a verb finish before what a rule of eviction raised is raised.

  Where neither the rule nor a new one can be relied on the store starts empty:
  then, or before its next verb if even that fails.

  Args:
    verb: A method of a store.
  """

  @functools.wraps(verb)
  def whole(
    store: _Owner, /, *given: _Given.args, **named: _Given.kwargs
  ) -> _Result:
    if store.index.lost:
      store.start_over(LOST)
    try:
      with store.index.finishing():
        return verb(store, *given, **named)
    finally:
      if store.index.lost:
        store.start_over(LOST)

  return whole


def of_sequence(
  verb: Callable[Concatenate[_Owner, Running, _Given], _Result],
) -> Callable[Concatenate[_Owner, Running, _Given], _Result]:
  """A verb that happens `entirely`, of a sequence that has not ended.

  A store that had to start empty gives the slots and pages of those that it
  ended to others, and whoever held one of these may not know of it yet.

  Args:
    verb: A method of a store.
  """

  @functools.wraps(verb)
  def checked(
    store: _Owner,
    running: Running,
    /,
    *given: _Given.args,
    **named: _Given.kwargs,
  ) -> _Result:
    return verb(store, store.held(running), *given, **named)

  return entirely(checked)


def collecting_later(
  verb: Callable[_Given, _Result],
) -> Callable[_Given, _Result]:
  """Lets Python look for unreachable objects when a verb has ended.

  It would look at all that a long prompt has just named, node by node, while
  somebody waits for the verb. Whoever has switched that off is left alone.

  Args:
    verb: Ends soon.
  """

  @functools.wraps(verb)
  def undisturbed(*given: _Given.args, **named: _Given.kwargs) -> _Result:
    collects = gc.isenabled()
    try:
      gc.disable()
      return verb(*given, **named)
    finally:
      if collects:
        gc.enable()

  return undisturbed


def index_for(
  budget: Budget, planner: Planner, eviction: Eviction | None, chunk: int
) -> PrefixIndex:
  """Returns an empty index whose rule is made anew where it fails.

  Args:
    budget: What may be held.
    planner: Knows what states are worth, if its placement weighs them.
    eviction: The rule that was asked for, or None.
    chunk: Tokens of a chunk, c.

  Raises:
    ValueError: If the rule is unknown, or does not go with the placement.
  """
  memory = max(1, budget.learned_bytes)

  def rule(worth: Adaptive | None) -> EvictionRule:
    if worth is not None:
      worth.limit_memory(memory)
    return rule_for(planner.policy.name, eviction, worth)

  return PrefixIndex(
    budget,
    rule(planner.worth),
    block_size=chunk,
    renew=lambda: rule(planner.renew_worth()),
  )
