"""Pools of another size: what is evicted for it, and numbered anew.

Only `cache/store.py` calls this module.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

from sparse_prefix_jax.cache.canonical import renumber
from sparse_prefix_jax.cache.index import (
  Budget,
  Lease,
  PrefixIndex,
  Renumbering,
)
from sparse_prefix_jax.cache.running import Running


def limits_with_room(
  index: PrefixIndex, slots: int, pages: int, spare: tuple[int, int]
) -> Budget:
  """The limits while pools get another size, if what runs fits; a look.

  Args:
    index: Of the pools.
    slots: That there will be.
    pages: That there will be.
    spare: Slots and pages that must be left beside what runs.

  Returns:
    Those of now, with the smaller size of both.

  Raises:
    CapacityError: If running sequences hold more.
  """
  now = index.budget
  fewer = min(slots, now.slots or slots), min(pages, now.pages or pages)
  low = dataclasses.replace(now, slots=fewer[0], pages=fewer[1])
  index.check_room(*spare, low)
  return low


def make_room(
  index: PrefixIndex, slots: int, pages: int, spare: tuple[int, int]
) -> Renumbering:
  """Evicts until pools of another size hold the rest.

  Args:
    index: Gets the smaller of both sizes as its limit.
    slots: That there will be.
    pages: That there will be.
    spare: Slots and pages that must be left beside what runs.

  Returns:
    What has to be copied within the pools, before either is made smaller.

  Raises:
    CapacityError: If running sequences hold more; nothing has changed.
  """
  low = limits_with_room(index, slots, pages, spare)
  index.set_budget(low)
  return index.renumbering(low.slots or 0, low.pages or 0)


def number_anew(
  index: PrefixIndex, sequences: Iterable[Running], moved: Renumbering
) -> None:
  """Gives what was copied its new numbers.

  Args:
    index: Of the smaller size.
    sequences: All that hold slots or pages.
    moved: Old numbers and new ones.
  """
  low = index.budget
  index.renumber(moved, low.slots or 0, low.pages or 0)
  for running in sequences:
    renumber(running, moved)


def set_size(index: PrefixIndex, slots: int, pages: int) -> None:
  """Sets the limits of an index to what the pools have."""
  index.set_budget(dataclasses.replace(index.budget, slots=slots, pages=pages))


@contextlib.contextmanager
def lent(index: PrefixIndex, slots: int, pages: int) -> Iterator[Lease]:
  """Lends free slots and pages, as `PrefixStore.spare` says.

  Raises:
    CapacityError: If running sequences leave no room for them.
  """
  lease = index.reserve(slots, pages)
  try:
    yield lease
  finally:
    index.free(lease.slots, lease.pages)
