import numpy as np
import pytest

from sparse_prefix_jax.placement.worth.pages import blocks_freed
from sparse_prefix_jax.placement.worth.table import ROOT, Table


def way(table, row):
  """The row and all above it, without the root."""
  rows = []
  while row != ROOT:
    rows.append(int(row))
    row = table.parent[row]
  return rows


def needed(table, held):
  """Blocks on the ways to some candidates, each counted once."""
  rows = {row for one in held for row in way(table, one)}
  above = table.parent
  return sum(table.depth[row] - table.depth[above[row]] for row in rows)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_freed_is_what_is_needed_no_more(seed):
  random = np.random.default_rng(seed)
  table = Table()
  for _ in range(25):
    row = table.new_row()
    table.parent[row] = random.integers(max(0, row - 8), row)
    table.depth[row] = table.depth[table.parent[row]] + random.integers(1, 5)
  held = 1 + random.permutation(25)[: random.integers(1, 12)]
  table.held[held] = True
  total = needed(table, held)
  freed = blocks_freed(table, held)
  for row, blocks in zip(held, freed.tolist()):
    assert blocks == total - needed(table, held[held != row])
