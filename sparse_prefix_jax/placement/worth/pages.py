"""What evicting a state frees besides the state: pages that nobody else needs.

Keys and values are kept for every block on the way to a held state, once for
all of them. So a state above another one frees no page, and the last one of a
branch frees those back to where the way to another one leaves.
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
  >>> table.held[rows] = True
  >>> blocks_freed(table, rows).tolist()
  [0, 4]
  """
  held = np.flatnonzero(table.held[: table.size])
  users = _users(table, held)
  above = table.parent[rows]
  while True:
    alone = (above != ROOT) & ~table.held[above] & (users[above] == 1)
    if not alone.any():
      break
    above = np.where(alone, table.parent[above], above)
  freed = table.depth[rows] - table.depth[above]
  return np.where(users[rows] > 0, 0, freed)


def _users(
  table: Table, held: Int64[np.ndarray, "n"]
) -> Int64[np.ndarray, "size"]:
  """How many held candidates are next below each row."""
  users = np.zeros(table.size, np.int64)
  above = table.parent[held]
  while (above := above[above != ROOT]).size:
    np.add.at(users, above, 1)
    above = table.parent[above[~table.held[above]]]
  return users
