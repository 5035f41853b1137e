"""Whose demand a state serves, and what the state is worth by it: flow.

A request that wants a prefix resumes from the deepest state on the way to it.
So the demand of every candidate flows to its *holder*, the nearest held one
among itself and those above it; to nobody where there is none. Holding another
candidate takes over what is wanted below it and not held deeper; evicting one
leaves its flow to the next holder above. The state at u is worth

    max over T of flow_u(T) / T  *  (F(u) - F(nearest held above u))

per request: the best rate at which it is wanted over any horizon, times what a
request then spares by it beyond what it would spare anyway.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.worth.demand import HORIZONS
from sparse_prefix_jax.placement.worth.table import Table

_LEAST_RATE = 1e-12


def refill(table: Table) -> None:
  """Finds all holders and sums all flows anew.

  Args:
    table: Its columns `holder`, `flow` and `rate` are written.
  """
  size, width = table.size, HORIZONS.size
  table.holder[:size] = _holders(table)
  # Demand never falls with the horizon: the longest one tells who has any.
  rows = np.flatnonzero(table.demand[:size, -1])
  where = table.holder[rows, None] * width + np.arange(width)
  sums = np.bincount(
    where.ravel(), table.demand[rows].ravel(), minlength=size * width
  )
  table.flow[:size] = sums.reshape(size, width)
  _rerate(table, slice(0, size))


def want(
  table: Table,
  rows: Int64[np.ndarray, "n"],
  demand: Float64[np.ndarray, "n horizons"],
) -> None:
  """Changes what candidates are wanted for, and the flow of their holders.

  Args:
    table: Its columns `demand`, `flow` and `rate` are written.
    rows: Different candidates.
    demand: How often each will be wanted from now on.
  """
  holders = table.holder[rows]
  np.add.at(table.flow, holders, demand - table.demand[rows])
  table.demand[rows] = demand
  _rerate(table, holders)


def hold(table: Table, rows: Sequence[int]) -> None:
  """Holds candidates, which take over the demand below them.

  Args:
    table: Its columns `held`, `holder`, `flow` and `rate` are written.
    rows: Candidates without a state.
  """
  table.held[list(rows)] = True
  before = table.holder[: table.size].copy()
  after = _holders(table)
  moved = np.flatnonzero(before != after)
  table.holder[moved] = after[moved]
  np.subtract.at(table.flow, before[moved], table.demand[moved])
  np.add.at(table.flow, after[moved], table.demand[moved])
  _rerate(table, np.concatenate([before[moved], after[moved]]))


def release(table: Table, row: int) -> None:
  """Holds a candidate no more; its flow goes to the next holder above.

  Args:
    table: Its columns `held`, `holder`, `flow` and `rate` are written.
    row: A held candidate.
  """
  above = table.holder[table.parent[row]]
  table.held[row] = False
  holder = table.holder[: table.size]
  holder[holder == row] = above
  table.flow[above] += table.flow[row]
  table.flow[row] = 0
  _rerate(table, np.array([row, above]))


def worths(
  table: Table, rows: Int64[np.ndarray, "n"]
) -> Float64[np.ndarray, "n"]:
  """Returns what held candidates are worth, in units of cost per request.

  Args:
    table: Only read.
    rows: Held candidates.
  """
  above = table.holder[table.parent[rows]]
  spared = table.cost[rows] - table.cost[above]
  return np.maximum(table.rate[rows], _LEAST_RATE) * spared


def _holders(table: Table) -> Int64[np.ndarray, "size"]:
  """The nearest held candidate of every row, by doubling of pointers."""
  rows = np.arange(table.size)
  nearest = np.where(table.held[: table.size], rows, table.parent[: table.size])
  while True:
    further = nearest[nearest]
    if (further == nearest).all():
      return nearest
    nearest = further


def _rerate(table: Table, rows: Int64[np.ndarray, "n"] | slice) -> None:
  """Finds the best rates of flows that have changed."""
  table.rate[rows] = (table.flow[rows] / HORIZONS).max(axis=-1)
