"""What is known of every candidate, as a structure of arrays: `Table`.

A candidate has a *row*, a number that it keeps for as long as it is remembered;
row 0 is the root of the tree, the empty prefix, which is no candidate. What is
computed for all candidates at once is computed by column.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sparse_prefix_jax.placement.worth.ages import HORIZONS
from sparse_prefix_jax.placement.worth.cells import UNKNOWN

ROOT = 0
"""The row of the empty prefix."""

_FIRST_ROOM = 256
_FLOATS = ("gap", "events", "expected", "cost", "rate")
_WIDE = ("demand", "flow")
_INTEGERS = ("parent", "children", "depth", "number", "length", "kind", "turn")
_INTEGERS += ("passes", "last", "cell", "holder", "busy", "busy_sum", "freed")
_TYPES: dict[str, type] = {
  **dict.fromkeys(_INTEGERS, np.int64),
  **dict.fromkeys(_FLOATS + _WIDE, np.float64),
  "held": np.bool_,
  "current": np.bool_,
}


class Table:
  """Columns with one entry per candidate, of which the first `size` are in use.

  Attributes:
    size: Rows in use or free again; the root is one of them.
    free: Rows below `size` that hold no candidate.
    parent: Row of the nearest candidate above, or `ROOT`.
    children: How many candidates have this one as their parent.
    depth: Blocks before it.
    number: Its node's number among all blocks ever seen, the older first;
      breaks ties.
    length: Blocks of the last prompt that went through it.
    kind: A `Kind`; 0 where the row is free.
    turn: Ends of prompts on the way to it when it was proposed.
    passes: How many requests went through it since.
    gap: log2 of requests between visits, or `UNKNOWN`.
    events: How many of them went exactly as far.
    expected: How many were expected to, by its hazards.
    last: Step of its last visit, or of its proposal.
    cell: Its cell, by the six facts.
    cost: What prefilling up to it costs.
    held: Whether a state is held, or virtually, there.
    busy: How many of its children are held, or have somebody held below.
    busy_sum: The sum of their rows.
    freed: Blocks that only its state needs; 0 where none is held.
    holder: Row of the nearest held candidate among it and those above it;
      `ROOT` where there is none.
    demand: [rows, horizons] How often it will be wanted.
    flow: [rows, horizons] The demand of all candidates that it is the holder
      of; zeros unless it is held, or the root.
    rate: The best rate of its flow, per request.
    current: Whether its holder is kept up to date.
    current_rows: The rows of which that is so, in any order.

  >>> table = Table()
  >>> table.new_row(), table.size
  (1, 2)
  """

  parent: Int64[np.ndarray, "rows"]
  children: Int64[np.ndarray, "rows"]
  depth: Int64[np.ndarray, "rows"]
  number: Int64[np.ndarray, "rows"]
  length: Int64[np.ndarray, "rows"]
  kind: Int64[np.ndarray, "rows"]
  turn: Int64[np.ndarray, "rows"]
  passes: Int64[np.ndarray, "rows"]
  gap: Float64[np.ndarray, "rows"]
  events: Float64[np.ndarray, "rows"]
  expected: Float64[np.ndarray, "rows"]
  last: Int64[np.ndarray, "rows"]
  cell: Int64[np.ndarray, "rows"]
  cost: Float64[np.ndarray, "rows"]
  held: Bool[np.ndarray, "rows"]
  holder: Int64[np.ndarray, "rows"]
  busy: Int64[np.ndarray, "rows"]
  busy_sum: Int64[np.ndarray, "rows"]
  freed: Int64[np.ndarray, "rows"]
  demand: Float64[np.ndarray, "rows horizons"]
  flow: Float64[np.ndarray, "rows horizons"]
  rate: Float64[np.ndarray, "rows"]
  current: Bool[np.ndarray, "rows"]

  def __init__(self) -> None:
    """Has the root alone."""
    self.size, self.free = 1, list[int]()
    self.current_rows = np.zeros(0, np.int64)
    for name, dtype in _TYPES.items():
      wide = (HORIZONS.size,) if name in _WIDE else ()
      setattr(self, name, np.zeros((_FIRST_ROOM, *wide), dtype))

  def new_row(self) -> int:
    """Takes a row, all of whose columns are zero but an unknown gap."""
    if self.free:
      row = self.free.pop()
    else:
      row, self.size = self.size, self.size + 1
      if row == len(self.parent):
        self._grow()
    self.gap[row] = UNKNOWN
    return row

  def free_row(self, row: int) -> None:
    """Gives a row back.

    Args:
      row: That of a candidate without children or state, not the root's.
    """
    for name in _TYPES:
      getattr(self, name)[row] = 0
    self.free.append(row)

  def rows(self) -> np.ndarray:
    """Returns the rows of all candidates, in ascending order."""
    return np.flatnonzero(self.kind[: self.size])

  def follow(self, rows: Int64[np.ndarray, "n"]) -> None:
    """Makes these candidates the current ones, and no others.

    Args:
      rows: Different candidates.
    """
    self.current[: self.size] = False
    self.current[rows] = True
    self.current_rows = rows

  def follow_too(self, rows: Int64[np.ndarray, "n"]) -> None:
    """Makes these candidates current as well.

    Args:
      rows: Different candidates.
    """
    new = rows[~self.current[rows]]
    if new.size:
      self.current[new] = True
      self.current_rows = np.concatenate([self.current_rows, new])

  def _grow(self) -> None:
    """Makes every column longer by a quarter."""
    for name in _TYPES:
      column = getattr(self, name)
      more = np.zeros_like(column[: max(_FIRST_ROOM, len(column) // 4)])
      setattr(self, name, np.concatenate([column, more]))


ROW_BYTES = sum(getattr(Table(), name).nbytes // _FIRST_ROOM for name in _TYPES)
"""Bytes of a row in all columns."""
