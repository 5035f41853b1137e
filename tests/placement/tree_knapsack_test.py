import numpy as np
import pytest

from sparse_prefix_jax.placement import (
  DemandTree,
  solve_placement,
  solve_tree,
)
from tests.placement import tree_reference as reference


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("whole", [True, False])
def test_no_choice_saves_more(seed, whole):
  """Against every choice, in forests with and without demand on the way."""
  rng = np.random.default_rng(seed)
  size = int(rng.integers(1, 12))
  arrays = reference.random_tree(rng, size, whole=whole, roots=1 + seed % 3)
  tree = DemandTree.of(*arrays)
  for budget in range(min(size, 5) + 1):
    found = solve_tree(tree, budget)
    expected = reference.exhaustive(*arrays, budget)
    nodes = set(found.nodes.tolist())
    assert len(nodes) == len(found.nodes) <= budget
    if whole:
      assert found.saved == expected
      assert reference.saved(*arrays, nodes) == expected
    else:
      assert found.saved == pytest.approx(expected, rel=1e-12)
      assert reference.saved(*arrays, nodes) == pytest.approx(
        expected, rel=1e-12
      )


def test_gains_need_not_fall():
  """A node at depth 10 whose three children, at 19, are left once each."""
  tree = DemandTree.of([-1, 0, 0, 0], [10, 19, 19, 19], [0, 1, 1, 1])
  saved = [solve_tree(tree, budget).saved for budget in range(5)]
  assert np.diff(saved).tolist() == [30, 9, 18, 0]


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_a_path_is_the_placement_of_one_entry(budget):
  rng = np.random.default_rng(budget)
  weights = rng.integers(0, 50, 64)
  tree = DemandTree.of(np.arange(-1, 63), np.arange(64), weights)
  placed = solve_placement(weights, budget)
  recomputed = int((np.arange(64) * weights).sum()) - int(placed.objective)
  assert solve_tree(tree, budget).saved == recomputed


def test_large_whole_numbers_stay_exact():
  """Where float64 would round: two choices that differ by one."""
  tree = DemandTree.of([-1, -1], [2**58, 2**58 + 1], [1, 1])
  assert solve_tree(tree, 1).nodes.tolist() == [1]
  assert solve_tree(tree, 1).saved == 2**58 + 1


@pytest.mark.parametrize("parent", [-1, 0])
def test_so_many_children_that_their_sums_are_too_large_are_refused(parent):
  """Each of them has few cells of its own."""
  count = 40_000
  parents, depths = [-1, *[parent] * count], [1, *[2] * count]
  tree = DemandTree.of(parents, depths, [1] * (count + 1))
  assert solve_tree(tree, 3).nodes.size == 3
  with pytest.raises(ValueError, match="use solve_tree_priced"):
    solve_tree(tree, count)


def test_a_tree_that_is_too_large_is_refused():
  size = 60_000
  tree = DemandTree.of(
    np.arange(-1, size - 1), np.arange(size), np.ones(size, int)
  )
  with pytest.raises(ValueError, match="use solve_tree_priced"):
    solve_tree(tree, 10)


def test_an_empty_tree_keeps_nothing():
  placed = solve_tree(DemandTree.of([], [], []), 3)
  assert (placed.nodes.size, placed.saved) == (0, 0)


def test_a_negative_budget_is_refused():
  with pytest.raises(ValueError, match="budget must not be negative, got -1"):
    solve_tree(DemandTree.of([-1], [1], [1]), -1)
