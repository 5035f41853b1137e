"""Least recently used, with a probation for superseded states."""

from ..tree import State
from .fifo import Fifo


class Lru(Fifo):
  """The state that no request resumed from for longest goes first.

  The probation is that of `Fifo`.
  """

  def hit(self, state: State) -> None:
    """Makes the state the newest and ends its probation."""
    super().hit(state)
    self._order.move_to_end(state)
