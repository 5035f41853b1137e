import numpy as np
import pytest

from sparse_prefix_jax.placement import (
  DemandTree,
  solve_tree,
  solve_tree_priced,
)
from tests.placement import tree_reference as reference

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("nodes", [1, 9, 60])
def test_the_best_lies_between_the_choice_and_the_bound(seed, nodes):
  rng = np.random.default_rng(seed)
  arrays = reference.random_tree(rng, nodes, roots=1 + seed % 3)
  tree = DemandTree.of(*arrays)
  for budget in (0, 1, 2, 5, 20):
    best, found = solve_tree(tree, budget), solve_tree_priced(tree, budget)
    chosen = found.nodes.tolist()
    assert len(set(chosen)) == len(chosen) <= budget
    assert found.saved == reference.saved(*arrays, set(chosen))
    assert found.saved <= best.saved <= found.upper_bound


def test_equal_gains_are_filled_up():
  """No price splits a hundred equal prompts."""
  tree = DemandTree.of([-1] * 100, [7] * 100, [3] * 100)
  found = solve_tree_priced(tree, 40)
  assert (len(found.nodes), found.saved) == (40, 40 * 21)
  assert found.upper_bound == pytest.approx(40 * 21, rel=1e-9)


def test_the_gap_of_large_trees_is_small():
  """Conversations that go on and share a beginning; one state in ten nodes."""
  rng = np.random.default_rng(0)
  parents, cost = [-1], [64]
  for _ in range(400):
    node = 0
    for _ in range(int(rng.integers(1, 12))):
      parents.append(node)
      cost.append(cost[node] + int(rng.integers(1, 40)))
      node = len(parents) - 1
  demand = rng.integers(0, 4, len(parents))
  tree = DemandTree.of(parents, cost, demand)
  found = solve_tree_priced(tree, len(parents) // 10)
  assert found.saved >= 0.995 * found.upper_bound
  assert solve_tree(tree, len(parents) // 10).saved <= found.upper_bound
