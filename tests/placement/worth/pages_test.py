import numpy as np
import pytest

from sparse_prefix_jax.placement.worth import pages
from sparse_prefix_jax.placement.worth.table import ROOT, Table
from sparse_prefix_jax.placement.worth.tree import Tree


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


def held_rows(table):
  return np.flatnonzero(table.held[: table.size])


def check(table):
  """What each state frees is what is needed no more without it."""
  held = held_rows(table)
  total = needed(table, held)
  freed = table.freed[held].tolist()
  for row, blocks in zip(held, freed):
    assert blocks == total - needed(table, held[held != row])


def a_prompt(random):
  """Blocks of few kinds, so that prompts leave each other everywhere."""
  return random.integers(0, 2, random.integers(1, 12)).tolist()


def add_one(tree, table, random):
  """A prompt, with a candidate where it leaves what is known and others."""
  way = tree.walk(a_prompt(random))
  wished = int(random.integers(1, 12))
  for depth in sorted({way.matched, wished, len(way.keys)}):
    if 0 < depth <= len(way.keys) and way.row_at(depth) is None:
      table.kind[tree.add(way, depth)] = 1
  tree.finish(way)


def remove_one(tree, table, random):
  """A leaf without a state is forgotten."""
  rows = table.rows()
  bare = rows[~table.held[rows] & (table.children[rows] == 0)]
  if bare.size:
    tree.remove(int(random.choice(bare)))


@pytest.mark.parametrize("seed", range(12))
def test_what_is_freed_is_what_is_needed_no_more(seed):
  """As states and candidates come and go, new ones between others too."""
  random = np.random.default_rng(seed)
  table = Table()
  tree = Tree(table)
  for _ in range(50):
    add_one(tree, table, random)
    rows = table.rows()
    for row in random.permutation(rows[~table.held[rows]])[:2].tolist():
      pages.count_held(table, row)
      check(table)
    for row in random.permutation(held_rows(table))[: random.integers(0, 4)]:
      pages.count_released(table, int(row))
      check(table)
    remove_one(tree, table, random)
    check(table)
  for row in held_rows(table).tolist():
    pages.count_released(table, row)
  for column in (table.busy, table.busy_sum, table.freed):
    assert not column.any()
