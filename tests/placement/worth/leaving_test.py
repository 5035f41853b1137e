"""Weighed once, the same goes as where all are weighed for each: to the bit."""

import copy

import numpy as np
import pytest

from sparse_prefix_jax.placement.worth import flow
from sparse_prefix_jax.placement.worth.leaving import ALIKE, Freed, Leaving
from sparse_prefix_jax.placement.worth.table import Table
from tests.placement.worth.flow_test import random_table


def held_table(seed):
  """A random tree with sums that rounding shows, half of it held."""
  random = np.random.default_rng(seed)
  table = random_table(seed, size=60)
  rows = table.rows()
  table.number[rows] = random.permutation(rows)
  table.demand[rows] = np.cumsum(random.random((rows.size, 14)), axis=1)
  alike = random.permutation(rows)[:20]
  table.demand[alike] = table.demand[alike[0]]
  flow.refill(table, rows)
  flow.hold(table, random.permutation(rows)[:30].tolist())
  return table, random


def columns(table):
  values = vars(table).items()
  return {name: v for name, v in values if isinstance(v, np.ndarray)}


def units(blocks, state, block, beside):
  counted = [state + block * count for count in blocks.tolist()]
  return np.array([n + beside if n > 0 else 1e-9 for n in counted])


def plainly(table, going, most, pinned, freed, stays):
  """One at a time: everything is weighed anew for each."""
  pinned, gone = {*pinned}, []
  while len(gone) < most:
    held = np.flatnonzero(table.held[: table.size])
    rows = np.array([row for row in held if row not in pinned], np.int64)
    if not rows.size:
      return gone, None
    worth = flow.worths(table, rows)
    worth = worth / units(table.freed[rows], *freed)
    row = min(zip(worth, table.number[rows], rows.tolist()))[2]
    if row in going:
      flow.release(table, row)
      gone.append(row)
    elif stays(row):
      pinned.add(row)
    else:
      return gone, row
  return gone, None


def weighed_once(table, going, most, pinned, freed, stays):
  """As `plainly`; what goes may be any, and is next to others that go."""
  leaving, gone, least = Leaving(table, pinned=pinned, freed=freed), [], None
  while len(gone) < most and (least := leaving.least()) is not None:
    if least in going:
      leaving.release(least)
      gone.append(least)
    elif stays(least):
      leaving.keep(least)
    else:
      break
  leaving.finish()
  return gone, None if len(gone) == most else least


@pytest.mark.parametrize(
  "freed", [ALIKE, Freed(100, 10), Freed(0, 10, beside=100)]
)
@pytest.mark.parametrize("most", [3, 99])
@pytest.mark.parametrize("seed", range(12))
def test_releases_what_one_after_another_would(seed, most, freed):
  table, random = held_table(seed)
  held = np.flatnonzero(table.held[: table.size]).tolist()
  random.shuffle(held)
  going, pinned, staying = {*held[:18]}, held[18:21], {*held[21:26]}
  if seed % 3 == 0:
    staying = {*held}
  one = copy.deepcopy(table)

  def decided(by, which):
    stays = staying.__contains__
    return by(which, going, most, pinned=pinned, freed=freed, stays=stays)

  together, alone = decided(weighed_once, table), decided(plainly, one)
  assert together == alone
  assert together[0] or seed % 3
  found, expected = columns(table), columns(one)
  assert len(found) == len(expected) > 20
  for name, column in expected.items():
    assert np.array_equal(found[name], column), name


def test_a_state_that_frees_nothing_of_use_counts_almost_nothing():
  """Where blocks are short, the state itself counts beside those it frees."""
  short_of_blocks = Freed(0, 10, beside=100)
  assert short_of_blocks.of(np.array([0.0, 9.0])).tolist() == [1e-9, 190]
  assert (short_of_blocks.of(0.0), short_of_blocks.of(9.0)) == (1e-9, 190)
  assert Freed(100, 10).of(9.0) == 190 and ALIKE.of(9.0) == 1


def test_nothing_is_least_of_nothing():
  table = Table()
  assert Leaving(table).least() is None


def test_pins_of_what_is_not_held_say_nothing():
  table, _ = held_table(0)
  free = np.flatnonzero(~table.held[: table.size]).tolist()
  assert Leaving(table, pinned=free).least() == Leaving(table).least()
