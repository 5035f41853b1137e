"""Which state checkpoint goes first when room is needed.

A rule orders states and moves nothing: one small file each, one line in
`EVICTIONS`.
"""

from collections.abc import Callable

from sparse_prefix_jax.placement import SHARED
from sparse_prefix_jax.placement.worth import Adaptive

from .fifo import Fifo as Fifo
from .lru import Lru as Lru
from .rule import EvictionRule as EvictionRule
from .worth import Worth as Worth

EVICTIONS: dict[str, Callable[[], EvictionRule]] = {
  "fifo": Fifo,
  "lru": Lru,
  "index": Worth,
}
"""The rules by name; `index` belongs to the placements that weigh states."""


def make_eviction(name: str) -> EvictionRule:
  """Returns a new rule that knows no state yet.

  Raises:
    ValueError: There is no rule of that name.

  >>> len(make_eviction("lru"))
  0
  """
  return EVICTIONS[_known(name)]()


def rule_for(
  placement: str, eviction: str | None, worth: Adaptive | None
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
  return make_eviction(name) if worth is None else Worth(worth)


def eviction_for(placement: str, eviction: str | None = None) -> str:
  """Returns the name of the rule by which a store evicts.

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
  if (_known(eviction) == "index") == weighs:
    return eviction
  if weighs:
    raise ValueError(
      f"placement {placement} evicts by its index, got eviction {eviction!r}."
    )
  raise ValueError(
    f"eviction index is that of placement {', '.join(SHARED)}, got placement"
    f" {placement!r}."
  )


def placement_for(eviction: str | None) -> str:
  """Returns the name of the placement where none was asked for.

  Args:
    eviction: The rule that was asked for, or None.

  >>> placement_for(None), placement_for("lru")
  ('adaptive', 'last')
  """
  return "adaptive" if eviction in (None, "index") else "last"


def _known(name: object) -> str:
  """The name of a rule that there is."""
  if isinstance(name, str) and name in EVICTIONS:
    return name
  raise ValueError(
    f"eviction must be one of {', '.join(sorted(EVICTIONS))}, got {name!r}."
  )
