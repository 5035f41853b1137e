import numpy as np
import pytest

from sparse_prefix_jax.cache.counts import StoreStats
from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.placement.worth.ages import EDGES, age_bins, spread
from sparse_prefix_jax.placement.worth.cells import CELLS, SHAPE, cells_of
from sparse_prefix_jax.placement.worth.demand import demand
from sparse_prefix_jax.placement.worth.hazards import Hazards
from tests.placement.worth import reference

AGES = np.array([0, 1, 2, 3, 10, 77, 4_000, 30_000, 2**20, 2**20 + 5])


def random_facts(seed, count=60):
  """Cells as numbers, the same as tuples, and ages."""
  random = np.random.default_rng(seed)
  facts = random.integers(0, SHAPE, (count, len(SHAPE)))
  cells = np.ravel_multi_index(tuple(facts.T), SHAPE)
  ages = np.ceil(2 ** random.uniform(0, 15, count)).astype(np.int64)
  return cells, [tuple(fact) for fact in facts.tolist()], ages


def taught(seed):
  """Hazards and their reference, after the same observations."""
  ours, plain = Hazards(), reference.Rates()
  for part in range(4):
    cells, facts, ages = random_facts((seed, part))
    ours.expose(cells, ages)
    ours.happen(cells[:9], ages[:9])
    for fact, age in zip(facts, ages.tolist()):
      plain.expose(fact, age)
    for fact, age in zip(facts[:9], ages[:9].tolist()):
      plain.happen(fact, age)
  return ours, plain


def test_bins_of_ages():
  assert EDGES.tolist() == reference.EDGES.tolist() and EDGES.size == 31
  bins = age_bins(AGES).tolist()
  assert bins == [reference.age_bin(age) for age in AGES.tolist()]
  expected = [reference.exposure_of(age) for age in AGES.tolist()]
  assert np.array_equal(spread(AGES), expected)


def test_cells_of_candidates():
  """Every value at and beside a limit, against one node at a time."""
  random = np.random.default_rng(0)
  size = 300
  kind = random.integers(1, 6, size)
  passes, turn = random.integers(0, 11, (2, size))
  gap = random.choice([-1.0, 0.0, 1.5, 2.0, 4.0, 5.5, 6.0, 8.0, 12.0], size)
  depth = random.choice([1, 2, 3, 4, 15, 16, 17, 63, 64, 65], size)
  beyond = random.random(size) < 0.5
  cells = cells_of(kind, passes, beyond, turn, gap, depth * 512)
  for i in range(size):
    node = reference.Node("x" * depth[i], kind[i], turn[i], gap[i], 0)
    node.passes, node.beyond = passes[i], beyond[i]
    assert np.unravel_index(cells[i], SHAPE) == node.cell(512)
  assert cells.max() < CELLS


@pytest.mark.parametrize("seed", range(3))
def test_hazards_lean_on_the_level_above(seed):
  ours, plain = taught(seed)
  cells, facts, ages = random_facts((seed, 9))
  ours.refit(cells, ages)
  plain.fit(list(zip(facts, ages.tolist())))
  assert np.array_equal(ours.rates.reshape(plain.rates.shape), plain.rates)


def test_a_cell_of_which_much_is_known_has_its_own_rate():
  hazards, cell = Hazards(), np.array([7])
  for _ in range(2_000):
    hazards.expose(cell, np.array([4]))
  for _ in range(500):
    hazards.happen(cell, np.array([3]))
  nobody = np.zeros(0, np.int64)
  hazards.refit(nobody, nobody)
  assert hazards.rates[7, 2] == pytest.approx(500 / 2_000, rel=0.01)


def test_who_still_waits_lowers_the_hazard():
  hazards, cell = Hazards(), np.array([7])
  before = hazards.rates[7, 5]
  hazards.refit(np.repeat(cell, 1_000), np.full(1_000, 4_000))
  assert hazards.rates[7, 5] < before / 5
  assert not hazards.exposure.any()  # It is counted when they wait no more.


def test_demand_of_every_horizon():
  ours, plain = taught(4)
  cells, facts, ages = random_facts((4, 9))
  ours.refit(cells, ages)
  plain.fit(list(zip(facts, ages.tolist())))
  random = np.random.default_rng(4)
  events, expected = random.integers(0, 9, 60) * 1.0, random.uniform(0, 9, 60)
  found = demand(ours, cells, ages, events, expected)
  for row, fact in enumerate(facts):
    so_far = plain.integral(fact, ages[row])
    frailty = (events[row] + 2) / (expected[row] + so_far + 2)
    for horizon, wanted in zip(reference.HORIZONS, found[row]):
      until = plain.integral(fact, ages[row] + horizon)
      assert wanted == pytest.approx(frailty * (until - so_far), rel=1e-12)


def test_what_documents_say_of_their_bytes():
  said = f"{Hazards().bytes / 2**20:.1f} MiB"
  assert said in str(Adaptive.remembered_bytes.__doc__)
  assert said in str(StoreStats.__doc__)
