"""All at once what `choose` and `release` do one after another, bit for bit."""

import copy

import numpy as np
import pytest

from sparse_prefix_jax.placement.worth import flow, pages
from sparse_prefix_jax.placement.worth.leaving import Leaving, release_least
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


def plainly(table, going, most, pinned, freed, stays):
  """One at a time: everything is weighed anew for each."""
  pinned, gone = {*pinned}, []
  while len(gone) < most:
    held = np.flatnonzero(table.held[: table.size])
    rows = np.array([row for row in held if row not in pinned], np.int64)
    if not rows.size:
      return gone, None
    worth = flow.worths(table, rows)
    worth = worth / freed(rows) if freed else worth
    row = min(zip(worth, table.number[rows], rows.tolist()))[2]
    if row in going:
      flow.release(table, row)
      gone.append(row)
    elif stays(row):
      pinned.add(row)
    else:
      return gone, row
  return gone, None


@pytest.mark.parametrize("weighs_pages", [False, True])
@pytest.mark.parametrize("most", [3, 99])
@pytest.mark.parametrize("seed", range(12))
def test_releases_what_one_after_another_would(seed, most, weighs_pages):
  table, random = held_table(seed)
  held = np.flatnonzero(table.held[: table.size]).tolist()
  random.shuffle(held)
  going, pinned, staying = {*held[:18]}, held[18:21], {*held[21:26]}
  if seed % 3 == 0:
    staying = {*held}
  one = copy.deepcopy(table)

  def decided(by, which):
    def freed(rows):
      return 100.0 + 10.0 * pages.blocks_freed(which, rows)

    weighed = freed if weighs_pages else None
    stays = staying.__contains__
    return by(which, going, most, pinned=pinned, freed=weighed, stays=stays)

  together, alone = decided(release_least, table), decided(plainly, one)
  assert together == alone
  assert together[0] or seed % 3
  found, expected = columns(table), columns(one)
  assert len(found) == len(expected) > 20
  for name, column in expected.items():
    assert np.array_equal(found[name], column), name


def test_nothing_is_least_of_nothing():
  table = Table()
  assert Leaving(table).least() is None
  assert release_least(table, set(), 9) == ([], None)


def test_pins_of_what_is_not_held_say_nothing():
  table, _ = held_table(0)
  free = np.flatnonzero(~table.held[: table.size]).tolist()
  assert Leaving(table, pinned=free).least() == Leaving(table).least()
