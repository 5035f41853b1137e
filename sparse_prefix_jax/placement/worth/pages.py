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

from sparse_prefix_jax.placement.worth.table import ROOT, Table


class Counting:
  """The columns of a table that are counted in, to be read one at a time.

  A memory view of a column gives and takes Python's numbers, in a third of the
  time. It is that of the column as it is: nothing may be added to the table
  while this is in use.

  Args:
    table: Its columns `held`, `busy`, `busy_sum` and `freed` are written.
  """

  def __init__(self, table: Table) -> None:
    """Reads nothing yet."""
    self._held, self._freed = table.held.data, table.freed.data
    self._busy, self._busy_sum = table.busy.data, table.busy_sum.data
    self._parent, self._depth = table.parent.data, table.depth.data

  def come(self, row: int) -> None:
    """Counts a state that comes.

    Args:
      row: A candidate without a state.
    """
    if self._busy[row]:
      # The way of the only state below it, if there are no others, ends here.
      self._free_down_to(self._only(row), row)
      self._held[row] = True
      return
    self._held[row] = True
    child, above = self._mark(row)
    if above != ROOT:
      other = self._only(above)
      self._busy[above] += 1
      self._busy_sum[above] += child
      self._free_down_to(other, above)
    self._free_down_to(row, above)

  def go(self, row: int) -> int | None:
    """Counts a state that goes.

    Args:
      row: A held candidate.

    Returns:
      The row of the state that frees more now, if there is one.
    """
    self._held[row], self._freed[row] = False, 0
    above = row if self._busy[row] else self._unmark(row)
    only = None if above == ROOT else self._only(above)
    if only is not None:
      self._free_down_to(only, self._stop(only))
    return only

  def _mark(self, row: int) -> tuple[int, int]:
    """Marks the idle ones above a row; the last of them, and who is above."""
    child, above = row, self._parent[row]
    while above != ROOT and not self._held[above] and not self._busy[above]:
      self._busy[above], self._busy_sum[above] = 1, child
      child, above = above, self._parent[above]
    return child, above

  def _unmark(self, row: int) -> int:
    """Unmarks those above a row that get idle; the first that does not."""
    child, above = row, self._parent[row]
    while above != ROOT:
      self._busy[above] -= 1
      self._busy_sum[above] -= child
      if self._held[above] or self._busy[above]:
        break
      child, above = above, self._parent[above]
    return above

  def _only(self, row: int) -> int | None:
    """The only state at or below a row, if there are no others; else None."""
    while not self._held[row]:
      if self._busy[row] != 1:
        return None
      row = self._busy_sum[row]
    return None if self._busy[row] else row

  def _stop(self, row: int) -> int:
    """Who is nearest above a state and needed by another one, or the root."""
    above = self._parent[row]
    while above != ROOT and not self._held[above] and self._busy[above] == 1:
      above = self._parent[above]
    return above

  def _free_down_to(self, row: int | None, above: int) -> None:
    """Notes that a state, if there is one, frees the blocks below a row."""
    if row is not None:
      self._freed[row] = self._depth[row] - self._depth[above]


def count_held(table: Table, row: int) -> None:
  """Counts a state that comes.

  Args:
    table: As of `Counting`.
    row: A candidate without a state.
  """
  Counting(table).come(row)


def count_released(table: Table, row: int) -> None:
  """Counts a state that goes.

  Args:
    table: As of `Counting`.
    row: A held candidate.
  """
  Counting(table).go(row)


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
