import numpy as np

from sparse_prefix_jax.placement.worth.forgetting import (
  EDGE_BYTES,
  forget,
  remembered_bytes,
)
from sparse_prefix_jax.placement.worth.hazards import Hazards
from sparse_prefix_jax.placement.worth.table import ROW_BYTES, Table
from sparse_prefix_jax.placement.worth.tree import Tree


def grown(count):
  """Prompts of two candidates each, of which the second hangs on the first."""
  table, hazards = Table(), Hazards()
  tree = Tree(table)
  for step in range(count):
    way = tree.walk([step, "a", "b"])
    for depth in (1, 3):
      row = tree.add(way, depth)
      table.kind[row], table.last[row], table.cell[row] = 1, step, 601
    tree.finish(way)
  return table, tree, hazards


def test_the_oldest_leaves_go_first_and_then_what_they_hung_on():
  table, tree, hazards = grown(50)
  limit = remembered_bytes(table, tree) // 2
  forget(table, tree, hazards, step=60, limit=limit)
  assert 0.8 * limit < remembered_bytes(table, tree) <= 0.9 * limit
  matched = [tree.walk([step, "a", "b"]).matched for step in range(50)]
  assert matched == sorted(matched)
  assert matched[0] == 0 and matched[-1] == 3


def test_what_was_held_or_is_visited_now_stays():
  table, tree, hazards = grown(9)
  held = tree.walk([0, "a", "b"]).rows[1]
  table.held[held] = True
  forget(table, tree, hazards, step=8, limit=1)
  matched = [tree.walk([step, "a", "b"]).matched for step in range(9)]
  assert matched == [3, 0, 0, 0, 0, 0, 0, 0, 3]


def test_exposure_of_the_forgotten_stays():
  table, tree, hazards = grown(9)
  forget(table, tree, hazards, step=20, limit=1)
  ages = np.repeat(20 - np.arange(9), 2)
  assert hazards.exposure[601].sum() == ages.sum()
  assert remembered_bytes(table, tree) == ROW_BYTES + EDGE_BYTES


def test_nothing_is_forgotten_below_the_limit():
  table, tree, hazards = grown(9)
  limit = remembered_bytes(table, tree)
  forget(table, tree, hazards, step=20, limit=limit)
  assert remembered_bytes(table, tree) == limit
  assert not hazards.exposure.any()
