"""What evicting a state frees besides the state: pages that nobody else needs.

Keys and values are kept for every block on the way to a held state, once for
all of them. So a state above another one frees no page, and the last one of a
branch frees those back to where the way to another one leaves.

How many blocks each state frees changes along its own way only, when a state
comes or goes; so it is counted then, and read whenever something has to leave.
A candidate is *busy below* where states are held below it; it knows how many of
its children lead to one, and the sum of their rows: where there is one, its
row.
"""

import numpy as np
from jaxtyping import Int64

from sparse_prefix_jax.placement.worth.table import ROOT, Table


def blocks_freed(
  table: Table, rows: Int64[np.ndarray, "n"]
) -> Int64[np.ndarray, "n"]:
  """Returns how many blocks only the state of each row needs.

  Args:
    table: Only read.
    rows: Held candidates.

  >>> table = Table()
  >>> rows = np.array([table.new_row() for _ in range(2)])
  >>> table.parent[rows], table.depth[rows] = [0, 1], [3, 7]
  >>> for row in rows:
  ...   count_held(table, int(row))
  >>> blocks_freed(table, rows).tolist()
  [0, 4]
  """
  return table.freed[rows]


def count_held(table: Table, row: int) -> None:
  """Counts a state that comes.

  Args:
    table: Its columns `held`, `busy`, `busy_sum` and `freed` are written.
    row: A candidate without a state.
  """
  if table.busy[row]:
    # The way of the only state below it, if there are no others, ends here.
    _free_down_to(table, _only(table, row), row)
    table.held[row] = True
    return
  table.held[row] = True
  child, above = _mark(table, row)
  if above != ROOT:
    other = _only(table, above)
    table.busy[above] += 1
    table.busy_sum[above] += child
    _free_down_to(table, other, above)
  _free_down_to(table, row, above)


def count_released(table: Table, row: int) -> None:
  """Counts a state that goes.

  Args:
    table: Its columns `held`, `busy`, `busy_sum` and `freed` are written.
    row: A held candidate.
  """
  table.held[row], table.freed[row] = False, 0
  above = row if table.busy[row] else _unmark(table, row)
  if above != ROOT:
    only = _only(table, above)
    _free_down_to(table, only, ROOT if only is None else _stop(table, only))


def cut(table: Table, row: int, child: int) -> None:
  """Counts for a new candidate on the way to another one.

  Args:
    table: Its columns `busy` and `busy_sum` are written.
    row: The new candidate, which has a parent.
    child: What hung on that parent, and hangs on the row now.
  """
  if not table.held[child] and not table.busy[child]:
    return
  table.busy[row], table.busy_sum[row] = 1, child
  above = table.parent[row]
  if above != ROOT:
    table.busy_sum[above] += row - child


def _mark(table: Table, row: int) -> tuple[int, int]:
  """Marks the idle ones above a row; the last of them, and who is above it."""
  child, above = row, int(table.parent[row])
  while above != ROOT and not table.held[above] and not table.busy[above]:
    table.busy[above], table.busy_sum[above] = 1, child
    child, above = above, int(table.parent[above])
  return child, above


def _unmark(table: Table, row: int) -> int:
  """Unmarks those above a row that get idle; the first that does not."""
  child, above = row, int(table.parent[row])
  while above != ROOT:
    table.busy[above] -= 1
    table.busy_sum[above] -= child
    if table.held[above] or table.busy[above]:
      break
    child, above = above, int(table.parent[above])
  return above


def _only(table: Table, row: int) -> int | None:
  """The only state at or below a row, if there are no others; else None."""
  while not table.held[row]:
    if table.busy[row] != 1:
      return None
    row = int(table.busy_sum[row])
  return None if table.busy[row] else row


def _stop(table: Table, row: int) -> int:
  """Who is nearest above a state and needed by another one, or the root."""
  above = int(table.parent[row])
  while above != ROOT and not table.held[above] and table.busy[above] == 1:
    above = int(table.parent[above])
  return above


def _free_down_to(table: Table, row: int | None, above: int) -> None:
  """Notes that a state, if there is one, frees the blocks below a row."""
  if row is not None:
    table.freed[row] = table.depth[row] - table.depth[above]
