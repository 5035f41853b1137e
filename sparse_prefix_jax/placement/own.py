"""A placement of your own: what it has to say, and how it gets a name."""

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from sparse_prefix_jax.placement.policy import PLACEMENTS
from sparse_prefix_jax.whole_numbers import check_whole


@runtime_checkable
class PlacementRule(Protocol):
  """Where prompts keep states, one prompt at a time."""

  def observe(self, length: int, overlap: int) -> None:
    """Learns from a request, before its prompt is placed.

    Args:
      length: Its tokens.
      overlap: Leading tokens that were known.
    """

  def positions(self, length: int, overlap: int) -> Iterable[int]:
    """Returns where a prompt should keep states; they are floored to chunks.

    Args:
      length: Its tokens.
      overlap: Leading tokens that were known.
    """
    ...


_RULES: dict[str, Callable[[int | float | None], PlacementRule]] = {}


def register_placement(
  name: str,
  make: Callable[[int | float | None], PlacementRule],
  *,
  budget: str | None = None,
) -> None:
  """Gives a placement of your own a name, for caches and `simulate`.

  Args:
    name: A new one.
    make: Returns a new rule for a budget; it is called for every cache.
    budget: What its budget means, None where it takes none.

  Raises:
    ValueError: If the name is taken, empty, or has a colon, or the others are
      of other types.

  >>> class Half:
  ...   def observe(self, length, overlap):
  ...     pass
  ...   def positions(self, length, overlap):
  ...     return [length // 2]
  >>> register_placement("half", lambda budget: Half())
  >>> from sparse_prefix_jax.placement import PlacementPolicy, Planner
  >>> Planner(PlacementPolicy("half"), depths=16).positions(300)
  (128,)
  >>> unregister_placement("half")
  """
  new = isinstance(name, str) and name and name not in PLACEMENTS
  if not new or ":" in name:
    raise ValueError(
      f"name must be new, without a colon, got {name!r}; "
      "`unregister_placement` takes a name back"
    )
  if not callable(make) or not (budget is None or isinstance(budget, str)):
    raise ValueError(
      f"make must be callable and budget a text or None, got {make!r} and "
      f"{budget!r}"
    )
  PLACEMENTS[name], _RULES[name] = budget, make


def unregister_placement(name: str) -> None:
  """Takes the name of a placement of your own back.

  Args:
    name: What it was registered as.

  Raises:
    ValueError: If it is no name of a placement of your own.
  """
  if not isinstance(name, str) or name not in _RULES:
    raise ValueError(f"name must be one that was registered, got {name!r}")
  del _RULES[name]
  del PLACEMENTS[name]


def rule_of(name: str, budget: int | float | None) -> PlacementRule | None:
  """Returns a new rule, None for a placement of the library.

  Args:
    name: Of a placement.
    budget: Its budget.

  Raises:
    ValueError: If what is made is no rule.
  """
  if name not in _RULES:
    return None
  try:
    rule = _RULES[name](budget)
  except TypeError as error:
    raise ValueError(
      f"placement {name} must be made from a budget alone, got {error}"
    ) from error
  # A class has all that its instances have, and is none of them.
  if isinstance(rule, type) or not isinstance(rule, PlacementRule):
    raise ValueError(
      f"placement {name} must make a PlacementRule, with observe and"
      f" positions, got {rule!r}"
    )
  return rule


def checked_positions(positions: Iterable[int], length: int) -> list[int]:
  """Returns what a rule wishes, each an integer within the prompt.

  Args:
    positions: What the rule returned.
    length: Tokens of the prompt.

  Raises:
    ValueError: If they are something else.

  >>> checked_positions((64, 128), 200)
  [64, 128]
  """
  if not isinstance(positions, Iterable):
    raise ValueError(
      f"positions must be an iterable of integers, got {positions!r}"
    )
  wished = [check_whole("positions", position) for position in positions]
  for position in wished:
    if not 0 <= position <= length:
      raise ValueError(
        f"positions must be 0 to the {length} tokens of the prompt, got"
        f" {position}"
      )
  return wished
