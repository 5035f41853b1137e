import numpy as np
import pytest

from sparse_prefix_jax.placement.demand_tree import (
  DemandTree,
  saved_by,
)
from tests.placement import tree_reference as reference


@pytest.mark.parametrize("seed", range(8))
def test_what_is_left_out_saves_nothing_more(seed):
  """The best choice of the smaller tree is the best of the whole."""
  rng = np.random.default_rng(seed)
  arrays = reference.random_tree(rng, 11)
  small, nodes = DemandTree.of(*arrays).compressed()
  for budget in (1, 2, 3):
    expected = reference.exhaustive(*arrays, budget)
    if len(small):
      found = reference.exhaustive(
        small.parents, small.cost, small.demand, budget
      )
      assert found == expected
    else:
      assert expected == 0
  np.testing.assert_array_equal(small.cost, arrays[1][nodes])
  assert (small.parents < np.arange(len(small))).all()


def test_a_path_is_compressed_to_where_it_is_left():
  parents = np.arange(-1, 999)
  demand = np.zeros(1000, np.int64)
  demand[[99, 499, 799]] = 1, 2, 3
  small, nodes = DemandTree.of(parents, np.arange(1000), demand).compressed()
  assert nodes.tolist() == [99, 499, 799]
  assert small.parents.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_saved_by_follows_every_request(seed):
  rng = np.random.default_rng(seed)
  arrays = reference.random_tree(rng, 30)
  nodes = rng.choice(30, 6, replace=False)
  expected = reference.saved(*arrays, set(nodes.tolist()))
  assert saved_by(DemandTree.of(*arrays), nodes) == expected


@pytest.mark.parametrize(
  "arrays, sentence",
  [
    (([0], [1], [1]), r"parents\[0\] must be -1 or the number of an earlier"),
    (([-1, -2], [1, 1], [1, 1]), r"parents\[1\] must be -1"),
    (([-1, 0], [2, 1], [1, 1]), r"cost\[1\] must not be below that of its"),
    (([-1], [-1], [1]), r"cost\[0\] must be finite and not negative, got -1"),
    (([-1], [1.0], [np.nan]), r"demand\[0\] must be finite and not negative"),
    (([-1], [1.0], [np.inf]), r"demand\[0\] must be finite"),
    (([-1], [1, 2], [1]), "one value per node, got"),
    (([-1.0], [1], [1]), "parents must be a vector of whole numbers"),
    (([-1], ["a"], [1]), "cost must be a vector of numbers"),
    (([-1], [[1]], [1]), "cost must be a vector of numbers"),
    (([-1, -1], [2**40, 1], [2**22, 1]), r"below 2\*\*62 when multiplied"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_tree_is_refused(arrays, sentence):
  with pytest.raises(ValueError, match=sentence):
    DemandTree.of(*arrays)


@pytest.mark.parametrize(
  "arrays, sentence",
  [
    (([-1], [1], [1]), "parents must be an array of int64, got list"),
    (
      (np.array([-1]), np.array([2], np.int32), np.array([1])),
      "cost must be an array of int64 or float64, got int32",
    ),
    (
      (np.array([-1]), np.array([2, 3]), np.array([1])),
      "one value per node, got",
    ),
    (
      (np.array([-1]), np.array([2]), np.array([0.5])),
      "cost holds int64 and demand float64; they must be of one kind",
    ),
    (
      (np.array([-1]), np.array([1e200]), np.array([1e200])),
      "cost and demand must be finite when multiplied",
    ),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_would_overflow_is_refused(arrays, sentence):
  """Sums of int32 wrapped, and a tree with demand saved nothing."""
  with pytest.raises(ValueError, match=sentence):
    DemandTree(*arrays)


def test_narrow_numbers_are_widened():
  arrays = [np.array([x], np.int32) for x in (-1, 2, 2**31 - 1)]
  assert saved_by(DemandTree.of(*arrays), np.array([0])) == 2 * (2**31 - 1)
