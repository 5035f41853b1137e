import numpy as np

from sparse_prefix_jax.placement.worth.cells import UNKNOWN
from sparse_prefix_jax.placement.worth.table import ROOT, Table


def test_rows_grow_and_keep_what_they_hold():
  table = Table()
  for number in range(1, 700):
    row = table.new_row()
    assert row == number
    table.kind[row], table.flow[row] = 1, row
  assert np.array_equal(table.rows(), np.arange(1, 700))
  assert np.array_equal(table.flow[:700, 3], np.arange(700))
  assert table.gap[1] == UNKNOWN and table.gap[ROOT] == 0


def test_free_rows_are_empty_and_come_first():
  table = Table()
  rows = [table.new_row() for _ in range(3)]
  table.kind[rows], table.demand[rows] = 2, 5
  table.free_row(rows[1])
  assert table.rows().tolist() == [rows[0], rows[2]]
  assert not table.demand[rows[1]].any() and table.gap[rows[1]] == 0
  assert table.new_row() == rows[1]
  assert table.gap[rows[1]] == UNKNOWN
