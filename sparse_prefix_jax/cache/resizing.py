"""Pools of another size: what the owner of a request's life does for it.

Only `cache/store.py` uses this module.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from sparse_prefix_jax.cache.canonical import renumber
from sparse_prefix_jax.cache.index import Lease, Renumbering
from sparse_prefix_jax.cache.store_view import StoreView
from sparse_prefix_jax.cache.verbs import entirely


class Resizing(StoreView):
  """The verbs of a `PrefixStore` that give it another number of slots or pages.

  Args and attributes are those of `StoreView`.
  """

  @entirely
  def begin_resize(
    self, slots: int, pages: int, *, spare: tuple[int, int] = (0, 0)
  ) -> Renumbering:
    """Makes room for pools of another size, evicting where one is smaller.

    Args:
      slots: That there will be.
      pages: That there will be.
      spare: Slots and pages that must be left beside what runs.

    Returns:
      What has to be copied within the pools, before either is made smaller.

    Raises:
      CapacityError: If running sequences hold more; nothing has changed.
    """
    now = self.index.budget
    fewer = min(slots, now.slots or slots), min(pages, now.pages or pages)
    low = dataclasses.replace(now, slots=fewer[0], pages=fewer[1])
    self.index.check_room(*spare, low)
    self.index.set_budget(low)
    return self.index.renumbering(low.slots or 0, low.pages or 0)

  def renumber(self, moved: Renumbering) -> None:
    """What `begin_resize` named has been copied: it has new numbers now."""
    low = self.index.budget
    self.index.renumber(moved, low.slots or 0, low.pages or 0)
    for running in (*self.running, *self.swapped):
      renumber(running, moved)

  @entirely
  def end_resize(self, slots: int, pages: int) -> None:
    """The pools have their new size."""
    budget = self.index.budget
    self.index.set_budget(dataclasses.replace(budget, slots=slots, pages=pages))

  @contextlib.contextmanager
  def spare(self, slots: int, pages: int) -> Iterator[Lease]:
    """Lends free slots and pages to try something in.

    Raises:
      CapacityError: If running sequences leave no room for them.
    """
    lease = self.index.reserve(slots, pages)
    try:
      yield lease
    finally:
      self.index.free(lease.slots, lease.pages)
