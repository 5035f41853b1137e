"""Which state checkpoint goes first when room is needed.

A rule orders states and moves nothing: one small file each, one line in
`EVICTIONS`. `register_eviction` adds one of your own, or it is passed as it is.
"""

from collections.abc import Callable
from typing import TypeAlias

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.placement import SHARED
from sparse_prefix_jax.placement.worth import Adaptive

from .branch_lru import BranchLru as BranchLru
from .fifo import Fifo as Fifo
from .greedy_dual import GreedyDual as GreedyDual
from .lru import Lru as Lru
from .marconi import Marconi as Marconi
from .ranked import Ranked as Ranked
from .rule import EvictionRule as EvictionRule
from .worth import Worth as Worth

EVICTIONS: dict[str, Callable[[], EvictionRule]] = {
  "fifo": Fifo,
  "lru": Lru,
  "branch_lru": BranchLru,
  "marconi": Marconi,
  "greedy_dual": GreedyDual,
  "index": Worth,
}
"""The rules by name; `index` belongs to the placements that weigh states."""

_OURS = frozenset(EVICTIONS)

Eviction: TypeAlias = str | Callable[[], EvictionRule]
"""A name of `EVICTIONS`, or what makes a rule: a class, say."""


def register_eviction(name: str, make: Callable[[], EvictionRule]) -> None:
  """Gives a rule of your own a name, for caches and `simulate`.

  Args:
    name: A new one.
    make: Returns a new rule that knows no state, such as its class.

  Raises:
    ValueError: If the name is taken or empty, or makes no rule.

  >>> register_eviction("oldest", Fifo)
  >>> len(make_eviction("oldest"))
  0
  >>> unregister_eviction("oldest")
  """
  if not isinstance(name, str) or not name or name in EVICTIONS:
    raise ValueError(
      f"name must be new and not empty, got {name!r}; `unregister_eviction`"
      " takes a name back."
    )
  if not callable(make):
    raise ValueError(f"make must be callable, such as a class, got {make!r}.")
  _made(make)
  EVICTIONS[name] = make


def unregister_eviction(name: str) -> None:
  """Takes the name of a rule of your own back.

  Args:
    name: What it was registered as.

  Raises:
    ValueError: If it is no name of a rule of your own.
  """
  if not isinstance(name, str) or name in _OURS or name not in EVICTIONS:
    raise ValueError(f"name must be one that was registered, got {name!r}.")
  del EVICTIONS[name]


def eviction_name(eviction: Eviction) -> str:
  """Returns what a rule is called in reports.

  >>> eviction_name("lru"), eviction_name(Fifo)
  ('lru', 'Fifo')
  """
  if isinstance(eviction, str):
    return eviction
  return getattr(eviction, "__name__", type(eviction).__name__)


def make_eviction(eviction: Eviction) -> EvictionRule:
  """Returns a new rule that knows no state yet.

  Args:
    eviction: A name, or what makes a rule.

  Raises:
    ValueError: There is no rule of that name, or what is made is none.

  >>> len(make_eviction("lru"))
  0
  """
  known = _known(eviction)
  return _made(EVICTIONS[known] if isinstance(known, str) else known)


def given_rule(eviction: EvictionRule | Eviction) -> EvictionRule:
  """Returns a rule as it is, or a new one of that name.

  Args:
    eviction: A rule, its name, or what makes one.

  Raises:
    ValueError: As `make_eviction`.

  >>> len(given_rule(Fifo())), len(given_rule(Fifo)), len(given_rule("fifo"))
  (0, 0, 0)
  """
  if isinstance(eviction, str | type) or not isinstance(eviction, EvictionRule):
    return make_eviction(eviction)
  return eviction


def rule_for(
  placement: str, eviction: Eviction | None, worth: Adaptive | None
) -> EvictionRule:
  """Returns the rule of a store, new.

  Args:
    placement: Name of the placement.
    eviction: The rule that was asked for, or None.
    worth: What the placement weighs states by, None where it does not.

  Raises:
    ValueError: As `eviction_for`.

  >>> type(rule_for("last", None, None)).__name__
  'Lru'
  """
  name = eviction_for(placement, eviction)
  if worth is not None:
    return Worth(worth)
  rule = make_eviction(name)
  if isinstance(rule, Worth):
    raise ValueError(
      f"eviction {eviction_name(name)} weighs states, as placement "
      f"{', '.join(SHARED)} does, got placement {placement!r}."
    )
  return rule


def eviction_for(placement: str, eviction: Eviction | None = None) -> Eviction:
  """Returns the rule by which a store evicts.

  Args:
    placement: Name of the placement.
    eviction: The rule that was asked for; None leaves it to the placement.

  Raises:
    ValueError: There is no rule of that name, or it does not go with the
      placement: those that weigh states say as well which of them go.

  >>> eviction_for("adaptive"), eviction_for("last")
  ('index', 'lru')
  """
  weighs = placement in SHARED
  if eviction is None:
    return "index" if weighs else "lru"
  known = _known(eviction)
  if (isinstance(known, str) and known == "index") == weighs:
    return eviction
  if weighs:
    raise ValueError(
      f"placement {placement} evicts by its index, got eviction {eviction!r}."
    )
  raise ValueError(
    f"eviction index is that of placement {', '.join(SHARED)}, got placement"
    f" {placement!r}."
  )


def placement_for(eviction: Eviction | None) -> str:
  """Returns the name of the placement where none was asked for.

  Args:
    eviction: The rule that was asked for, or None.

  >>> placement_for(None), placement_for("lru")
  ('adaptive', 'last')
  """
  weighs = isinstance(eviction, str) and eviction == "index"
  return "adaptive" if eviction is None or weighs else "last"


def _known(eviction: Eviction) -> Eviction:
  """The name of a rule that there is, or what makes one."""
  named = isinstance(eviction, str) and eviction in EVICTIONS
  if named or callable(eviction):
    return eviction
  raise ValueError(
    f"eviction must be one of {', '.join(sorted(EVICTIONS))}, or a class of"
    f" rules, got {brief(eviction)}."
  )


def _made(make: Callable[[], EvictionRule]) -> EvictionRule:
  """What a class or function makes, if that is a new rule every time."""
  try:
    made, other = make(), make()
  except TypeError as error:
    raise ValueError(
      f"eviction must be called without arguments to make a rule, got {error} "
      f"from {make!r}."
    ) from error
  # A class has all that its instances have, and is none of them.
  both = isinstance(made, EvictionRule) and isinstance(other, EvictionRule)
  if isinstance(made, type) or not both:
    raise ValueError(
      "eviction must make an EvictionRule (derive from Ranked or Lru), got"
      f" {made!r} from {make!r}."
    )
  if made is other or _known_states(made) or _known_states(other):
    raise ValueError(
      "eviction must make a new rule that knows no state every time, since "
      f"every cache needs one of its own, got {made!r} from {make!r}."
    )
  return made


def _known_states(rule: EvictionRule) -> int:
  """How many states a rule knows, if it can tell."""
  try:
    return len(rule)
  except (AttributeError, TypeError) as error:
    raise ValueError(
      "eviction must make a rule that says how many states it has, got"
      f" {error!r} of {rule!r}; an __init__ of your own calls"
      " super().__init__()."
    ) from error
