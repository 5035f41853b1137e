"""Whose demand a state serves, and what the state is worth by it: flow.

A request that wants a prefix resumes from the deepest state on the way to it.
So the demand of every candidate flows to its *holder*, the nearest held one
among itself and those above it; to nobody where there is none. Holding another
candidate takes over what is wanted below it and not held deeper; evicting one
leaves its flow to the next holder above. The state at u is worth

    max over T of flow_u(T) / T  *  (F(u) - F(nearest held above u))

per request: the best rate at which it is wanted over any horizon, times what a
request then spares by it beyond what it would spare anyway.

Candidates that want nothing, since nobody has visited them for long, need no
holder. Only the *current* ones are followed, which are closed upwards, so that
the time does not grow with all that is remembered.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.worth import pages
from sparse_prefix_jax.placement.worth.ages import HORIZONS
from sparse_prefix_jax.placement.worth.table import ROOT, Table

LEAST_RATE = 1e-12
_HORIZONS = HORIZONS.astype(np.float64)


def refill(table: Table, rows: Int64[np.ndarray, "n"]) -> None:
  """Finds holders and sums flows anew.

  Args:
    table: Its columns `current`, `holder`, `flow` and `rate` are written.
    rows: The candidates that count, among them all that are held; those above
      them are followed as well. Whoever is left out must want nothing.
  """
  held = np.flatnonzero(table.held[: table.size])
  table.follow(_with_those_above(table, rows))
  current = table.current_rows
  table.holder[current] = _holders(table, current)
  # Demand never falls with the horizon: the longest one tells who has any.
  rows = current[table.demand[current, -1] > 0]
  holders = np.concatenate([[ROOT], held])
  of = table.holder[rows]
  table.flow[holders] = _summed(table, holders, of, table.demand[rows])
  _rerate(table, holders)


def visit(table: Table, rows: Int64[np.ndarray, "n"]) -> None:
  """Follows the candidates on a way again, if they were left out.

  Args:
    table: Its columns `current` and `holder` are written.
    rows: All candidates on a way from the root, the shallow ones first.
  """
  places = np.where(table.held[rows], np.arange(rows.size), -1)
  last = np.maximum.accumulate(places)
  table.holder[rows] = np.where(last < 0, ROOT, rows[last])
  table.follow_too(rows)


def want(
  table: Table,
  rows: Int64[np.ndarray, "n"],
  demand: Float64[np.ndarray, "n horizons"],
) -> None:
  """Changes what candidates are wanted for, and the flow of their holders.

  Args:
    table: Its columns `demand`, `flow` and `rate` are written.
    rows: Different candidates, all current.
    demand: How often each will be wanted from now on.
  """
  holders = table.holder[rows]
  np.add.at(table.flow, holders, demand - table.demand[rows])
  table.demand[rows] = demand
  _rerate(table, np.array([*{*holders.tolist()}], np.int64))


def hold(table: Table, rows: Sequence[int]) -> None:
  """Holds candidates, which take over the demand below them.

  Args:
    table: Its columns `holder`, `flow` and `rate` are written, and those of
      `pages`.
    rows: Candidates without a state.
  """
  added = np.array(rows, np.int64)
  if not table.current[added].all():
    followed = _with_those_above(table, added)
    table.follow_too(followed)
    table.holder[followed] = _holders(table, followed)
  # Only who has the same holder as one of them can be below it.
  loses = np.zeros(table.size, np.bool_)
  loses[table.holder[added]] = True
  current = table.current_rows
  current = current[loses[table.holder[current]]]
  counting = pages.Counting(table)
  for row in reversed(rows):  # Deep ones first: who is above has less to look.
    counting.come(row)
  before, after = table.holder[current], _holders(table, current)
  moves = np.flatnonzero(before != after)
  moved, before, after = current[moves], before[moves], after[moves]
  table.holder[moved] = after
  _give(table, before, added, after, table.demand[moved])


def _give(
  table: Table,
  before: Int64[np.ndarray, "n"],
  added: Int64[np.ndarray, "m"],
  after: Int64[np.ndarray, "n"],
  demand: Float64[np.ndarray, "n horizons"],
) -> None:
  """Lets demand flow to new holders, which had none, from those before.

  It is taken off and added up in the order of the candidates, always.
  """
  if not before.size:
    return
  one = before[0]
  if (before == one).all():  # As a rule; and then it is done at once.
    flows = np.concatenate([table.flow[one][None], demand])
    table.flow[one] = np.subtract.reduce(flows, axis=0)
  else:
    np.subtract.at(table.flow, before, demand)
  table.flow[added] = _summed(table, added, after, demand)
  _rerate(table, np.append(added, list({*before.tolist()})))


def _summed(
  table: Table,
  holders: Int64[np.ndarray, "m"],
  of: Int64[np.ndarray, "n"],
  demand: Float64[np.ndarray, "n horizons"],
) -> Float64[np.ndarray, "m horizons"]:
  """The demand of candidates, summed for each of their holders in order."""
  place, width = np.zeros(table.size, np.int64), HORIZONS.size
  place[holders] = np.arange(holders.size) * width
  where = place[of, None] + np.arange(width)
  size = holders.size * width
  sums = np.bincount(where.ravel(), demand.ravel(), minlength=size)
  sums = sums.astype(np.float64, copy=False)  # Of nobody they are integers.
  return sums.reshape(-1, width)


def release(table: Table, row: int) -> None:
  """Holds a candidate no more; its flow goes to the next holder above.

  Args:
    table: Its columns `holder`, `flow` and `rate` are written, and those of
      `pages`.
    row: A held candidate.
  """
  above = table.holder[table.parent[row]]
  pages.count_released(table, row)
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
  return np.maximum(table.rate[rows], LEAST_RATE) * spared


def lost_blocks(table: Table) -> float:
  """Returns the blocks that the next request computes again, on average.

  It leaves what is known at a candidate, and resumes from the holder of that.

  Args:
    table: Only read.
  """
  rows = table.current_rows
  lost = table.depth[rows] - table.depth[table.holder[rows]]
  return float(table.demand[rows, 0] @ lost)


def _with_those_above(
  table: Table, rows: Int64[np.ndarray, "n"]
) -> Int64[np.ndarray, "m"]:
  """Candidates, and all on the ways to them."""
  found = np.zeros(table.size, np.bool_)
  found[ROOT] = True
  while (rows := rows[~found[rows]]).size:
    found[rows] = True
    rows = table.parent[rows]
  return np.flatnonzero(found)[1:]


def _holders(
  table: Table, rows: Int64[np.ndarray, "n"]
) -> Int64[np.ndarray, "n"]:
  """The nearest held of candidates, by doubling of pointers.

  With each of them there must be those above it, up to one that is held.
  """
  nearest = np.arange(table.size)
  nearest[rows] = np.where(table.held[rows], rows, table.parent[rows])
  while True:
    now, further = nearest[rows], nearest[nearest[rows]]
    if (further == now).all():
      return now
    nearest[rows] = further


def _rerate(table: Table, rows: Int64[np.ndarray, "n"]) -> None:
  """Finds the best rates of flows that have changed."""
  table.rate[rows] = (table.flow[rows] / _HORIZONS).max(axis=-1)
