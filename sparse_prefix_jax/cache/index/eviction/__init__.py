"""Which state checkpoint goes first when room is needed.

A rule orders states and moves nothing: one small file each, one line in
`EVICTIONS`.
"""

from collections.abc import Callable

from .fifo import Fifo as Fifo
from .lru import Lru as Lru
from .rule import EvictionRule as EvictionRule

EVICTIONS: dict[str, Callable[[], EvictionRule]] = {"fifo": Fifo, "lru": Lru}
"""The rules by name."""


def make_eviction(name: str) -> EvictionRule:
  """Returns a new rule that knows no state yet.

  Raises:
    ValueError: There is no rule of that name.

  >>> len(make_eviction("lru"))
  0
  """
  if not isinstance(name, str) or name not in EVICTIONS:
    known = ", ".join(sorted(EVICTIONS))
    raise ValueError(f"eviction must be one of {known}, got {name!r}.")
  return EVICTIONS[name]()
