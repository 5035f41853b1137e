"""Memory has a bound: candidates that nobody asks for are forgotten.

What they taught stays: their exposure is counted for good. Were it to go with
them, hazards would rise, since those that are forgotten had waited longest.
"""

import heapq

import numpy as np
from jaxtyping import Bool, Int64

from sparse_prefix_jax.placement.worth.hazards import Hazards
from sparse_prefix_jax.placement.worth.table import ROOT, ROW_BYTES, Table
from sparse_prefix_jax.placement.worth.tree import KEY_BYTES, Tree

EDGE_BYTES = 256
"""Bytes of what hangs a candidate in the tree: its edge, and where it is looked
up (measured with CPython 3.11)."""

# Forgetting goes this far below the limit, so that it is seldom necessary.
_KEPT = 0.9


def remembered_bytes(table: Table, tree: Tree) -> int:
  """Returns the bytes of all candidates, and of the keys between them.

  Args:
    table: With the rows of the tree.
    tree: With the edges.

  >>> table = Table()
  >>> remembered_bytes(table, Tree(table)) == ROW_BYTES + EDGE_BYTES
  True
  """
  rows = table.size - len(table.free)
  keys = tree.remembered_blocks * KEY_BYTES
  return rows * (ROW_BYTES + EDGE_BYTES) + keys


def spare_bytes(table: Table) -> int:
  """Returns the bytes of rows that no candidate has, at most a quarter more.

  Args:
    table: Its columns are never made shorter.

  >>> spare_bytes(Table()) == 255 * ROW_BYTES
  True
  """
  return (len(table.parent) - table.size + len(table.free)) * ROW_BYTES


def forget(
  table: Table,
  tree: Tree,
  hazards: Hazards,
  *,
  step: int,
  limit: int,
) -> None:
  """Forgets candidates, if there are too many of them.

  The leaves visited longest ago go first; one with a state never goes, nor does
  what lies on the way to it.

  Args:
    table: Rows of forgotten candidates are free; flows are to be summed anew.
    tree: Does not have them any more.
    hazards: Is told how long they waited.
    step: The one of now; whatever was visited in it stays.
    limit: Bytes that may be remembered.
  """
  if remembered_bytes(table, tree) <= limit:
    return
  gone: list[tuple[int, int]] = []
  leaves = _leaves(table, step)
  kept = _KEPT * limit
  while leaves and remembered_bytes(table, tree) > kept:
    _, _, row = heapq.heappop(leaves)
    gone.append((int(table.cell[row]), step - int(table.last[row])))
    parent = int(table.parent[row])
    tree.remove(row)
    if parent != ROOT and _may_go(table, np.array([parent]), step)[0]:
      heapq.heappush(leaves, _aged(table, parent))
  cells, ages = np.array(gone, np.int64).reshape(-1, 2).T
  hazards.expose(cells, ages)


def _leaves(table: Table, step: int) -> list[tuple[int, int, int]]:
  """A heap of what may be forgotten, that visited longest ago first."""
  rows = table.rows()
  leaves = rows[_may_go(table, rows, step)].tolist()
  heap = [_aged(table, row) for row in leaves]
  heapq.heapify(heap)
  return heap


def _aged(table: Table, row: int) -> tuple[int, int, int]:
  """A row behind what orders it: its last visit, then its number."""
  return int(table.last[row]), int(table.number[row]), row


def _may_go(
  table: Table, rows: Int64[np.ndarray, "n"], step: int
) -> Bool[np.ndarray, "n"]:
  """Whether rows are leaves without a state, not visited just now."""
  bare = ~table.held[rows] & (table.children[rows] == 0)
  return bare & (table.last[rows] < step)
