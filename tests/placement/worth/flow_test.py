import numpy as np
import pytest

from sparse_prefix_jax.placement.worth import flow
from sparse_prefix_jax.placement.worth.ages import HORIZONS
from sparse_prefix_jax.placement.worth.table import ROOT, Table


def random_demand(random, rows):
  """Quarters, whose sums are exact in any order, rising with the horizon."""
  return np.cumsum(random.integers(0, 9, (rows, HORIZONS.size)) / 4, axis=1)


def random_table(seed, size=40):
  """A random tree of candidates, nothing held."""
  random = np.random.default_rng(seed)
  table = Table()
  for _ in range(size):
    row = table.new_row()
    table.kind[row], table.parent[row] = 1, random.integers(0, row)
    table.depth[row] = table.depth[table.parent[row]] + random.integers(1, 4)
    table.cost[row] = table.depth[row] * 64.0
    table.demand[row] = random_demand(random, 1)[0]
  flow.refill(table, table.rows())
  return table


def holder(table, row):
  while row != ROOT and not table.held[row]:
    row = table.parent[row]
  return row


def check(table):
  """Everything is as if it were computed now, one row at a time."""
  rows = range(1, table.size)
  flows = np.zeros((table.size, HORIZONS.size))
  for row in rows:
    assert table.holder[row] == holder(table, row)
    flows[holder(table, row)] += table.demand[row]
  assert np.array_equal(table.flow[: table.size], flows)
  held = np.array([row for row in rows if table.held[row]], np.int64)
  above = [holder(table, table.parent[row]) for row in held]
  rates = (flows[held] / HORIZONS).max(1) if held.size else np.zeros(0)
  spared = table.cost[held] - table.cost[above]
  expected = np.maximum(rates, 1e-12) * spared
  assert np.array_equal(flow.worths(table, held), expected)


@pytest.mark.parametrize("seed", range(6))
def test_flows_follow_what_is_held(seed):
  random = np.random.default_rng(seed)
  table = random_table(seed)
  check(table)
  for _ in range(30):
    free = np.flatnonzero(~table.held[1 : table.size]) + 1
    flow.hold(table, random.permutation(free)[:3].tolist())
    check(table)
    held = np.flatnonzero(table.held[: table.size])
    for row in random.permutation(held)[: random.integers(0, 5)].tolist():
      flow.release(table, row)
      check(table)
    rows = 1 + random.permutation(table.size - 1)[:5]
    flow.want(table, rows, random_demand(random, 5))
    check(table)
  before = table.flow.copy()
  flow.refill(table, table.rows())
  assert np.array_equal(table.flow, before)
  check(table)


def test_who_is_left_out_is_followed_again_when_visited():
  """Asleep, a row wants nothing; its holder changes unseen, and is found."""
  random = np.random.default_rng(5)
  table = random_table(5)
  asleep = table.rows()[20:]
  table.demand[asleep] = 0
  flow.refill(table, table.rows()[:20])
  assert {*table.current_rows.tolist()} == {*range(1, 21)}
  flow.hold(table, [2, 5, 11])
  flow.release(table, 5)
  for row in asleep.tolist():
    way = []
    while row != ROOT:
      way.insert(0, row)
      row = int(table.parent[row])
    flow.visit(table, np.array(way))
    flow.want(table, np.array(way[-1:]), random_demand(random, 1))
  check(table)


def test_who_was_left_out_can_be_held():
  table = random_table(7)
  asleep = table.rows()[10:]
  table.demand[asleep] = 0
  flow.refill(table, table.rows()[:10])
  flow.hold(table, [3])
  flow.hold(table, asleep[[4, 20]].tolist())
  held = np.flatnonzero(table.held[: table.size])
  assert table.current[held].all()
  for row in held:
    assert table.holder[row] == row
    above = table.parent[row]
    assert table.holder[above] == holder(table, above)
  flow.release(table, 3)
  flow.refill(table, table.rows())
  check(table)


def test_a_state_is_worth_its_best_horizon_times_what_it_spares():
  table = Table()
  for depth in (4, 10):
    row = table.new_row()
    table.parent[row], table.depth[row] = row - 1, depth
    table.kind[row], table.cost[row] = 1, 64.0 * depth
  table.demand[1] = 0.5
  table.demand[2, 3:] = 2.0
  flow.refill(table, table.rows())
  flow.hold(table, [1])
  assert flow.worths(table, np.array([1])) == [0.5 * 4 * 64]
  flow.hold(table, [2])
  assert flow.worths(table, np.array([1, 2])).tolist() == [
    0.5 * 4 * 64,
    2.0 / 8 * 6 * 64,
  ]
  flow.release(table, 1)
  assert flow.worths(table, np.array([2])) == [2.0 / 8 * 10 * 64]
