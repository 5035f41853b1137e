"""Good nodes of a prefix tree of any size, by a price, and a bound.

With a price p for every state, children no longer share a budget, and

    g_v(a) = max( w(v) F(a) + sum_c g_c(a),  w(v) F(v) - p + sum_c g_c(v) )

is solved for all nodes of one depth at once. For every p, g of the roots and
p K together are at least what K states can save (Lagrange's bound). The search
is for the p at which the bound is least; the choice there that keeps at most K
states is filled up one state at a time, the one that gains most first. Gains on
a tree need not fall with the budget, so the choice may lack something: at most
the distance to the bound.
"""

import heapq

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.placement.demand_tree import (
  NO_PARENT,
  DemandTree,
  TreePlacement,
  saved_by,
)
from sparse_prefix_jax.placement.inputs import check_budget

_PRICES = 60
"""How often the range of prices is halved: to the last bits of a float."""


def solve_tree_priced(tree: DemandTree, budget: int) -> TreePlacement:
  """Chooses good nodes of a tree, and bounds what the best choice saves.

  Args:
    tree: The problem.
    budget: At most so many states, K.

  Returns:
    The choice. Its upper bound is rounded up, for whole numbers as well.

  Raises:
    ValueError: If it is no tree, or the budget is no integer of at least 0.

  Example:
    >>> tree = DemandTree.of([-1, 0, 0, 0], [10, 19, 19, 19], [0, 1, 1, 1])
    >>> placement = solve_tree_priced(tree, 2)
    >>> placement.saved, round(placement.upper_bound, 3)
    (39, 43.5)
  """
  check_class("tree", tree, DemandTree, "of `DemandTree.of`")
  budget = check_budget(budget)
  small, numbers = tree.compressed()
  if budget >= len(small):
    most = saved_by(small, np.arange(len(small)))
    return TreePlacement(numbers, most, most)
  priced = _PricedTree(small)
  chosen, bound = _least_bound(priced, budget)
  chosen = _filled(small, chosen, budget)
  nodes = np.flatnonzero(chosen)
  return TreePlacement(numbers[nodes], saved_by(small, nodes), bound)


class _PricedTree:
  """A tree whose nodes are solved depth by depth.

  Attributes:
    demand: As in `DemandTree`, in float64. [nodes]
    cost: Likewise. [nodes]
    levels: The nodes of each depth, the roots first.
    above: For each depth, F of every ancestor of its nodes, row by row, with 0
      for none in front. [nodes of that depth, 1 + depth]
  """

  def __init__(self, tree: DemandTree) -> None:
    """Sorts the nodes by depth."""
    self.demand = tree.demand.astype(np.float64)
    self.cost = tree.cost.astype(np.float64)
    self._parents = tree.parents
    depth = np.zeros(len(tree), np.int64)
    for node in np.flatnonzero(tree.parents != NO_PARENT):
      depth[node] = depth[tree.parents[node]] + 1
    deepest = int(depth.max(initial=-1))
    self.levels = [np.flatnonzero(depth == d) for d in range(deepest + 1)]
    self._row = np.zeros(len(tree), np.int64)
    for level in self.levels:
      self._row[level] = np.arange(len(level))
    self.above = self._above()

  def _above(self) -> list[np.ndarray]:
    """As the attribute: what the parent knows, and the parent's own cost."""
    found: list[np.ndarray] = []
    for level in self.levels:
      rows = np.zeros((len(level), 1))
      if found:
        parents = self._parents[level]
        before = found[-1][self._row[parents]]
        rows = np.concatenate([before, self.cost[parents][:, None]], axis=1)
      found.append(rows)
    return found

  def solve(self, price: float) -> tuple[Bool[np.ndarray, "nodes"], float]:
    """The best choice where every state costs so much, and what it yields."""
    takes: list[np.ndarray] = []
    yields = np.zeros((0, len(self.levels) + 1))
    for level, above in zip(reversed(self.levels), reversed(self.above)):
      shared = self._sums(yields, takes, level, above.shape[1] + 1)
      demand = self.demand[level]
      skipped = demand[:, None] * above + shared[:, :-1]
      kept = demand * self.cost[level] - price + shared[:, -1]
      # Of equally good choices one of few states.
      takes.append(kept[:, None] > skipped)
      yields = np.maximum(skipped, kept[:, None])
    return self._followed(takes[::-1]), float(yields[:, 0].sum())

  def _sums(
    self,
    yields: Float64[np.ndarray, "children rows"],
    solved: list[np.ndarray],
    level: Int64[np.ndarray, "level"],
    rows: int,
  ) -> Float64[np.ndarray, "level rows2"]:
    """Sums over the children of every node of a depth, row by row."""
    total = np.zeros((len(level), rows))
    if solved:
      children = self.levels[len(self.levels) - len(solved)]
      np.add.at(total, self._row[self._parents[children]], yields)
    return total

  def _followed(self, takes: list[np.ndarray]) -> Bool[np.ndarray, "nodes"]:
    """Which nodes keep a state, from the roots downwards."""
    chosen = np.zeros(len(self.cost), bool)
    # The row of each node: which of its ancestors is the nearest with a state.
    row = np.zeros(len(self.cost), np.int64)
    for depth, (level, take) in enumerate(zip(self.levels, takes)):
      if depth:
        parents = self._parents[level]
        row[level] = np.where(chosen[parents], depth, row[parents])
      chosen[level] = take[np.arange(len(level)), row[level]]
    return chosen


def _least_bound(
  tree: _PricedTree, budget: int
) -> tuple[Bool[np.ndarray, "nodes"], float]:
  """A choice of at most so many states, and the least bound that was met.

  The bound is convex in the price and falls as long as too many states are
  worth it, so that the range of prices can be halved.
  """
  low, high = 0.0, float((tree.cost * tree.demand.sum()).max(initial=0.0))
  fewest, bound = np.zeros(len(tree.cost), bool), np.inf
  for _ in range(_PRICES):
    price = (low + high) / 2
    chosen, yielded = tree.solve(price)
    bound = min(bound, yielded + price * budget)
    if np.count_nonzero(chosen) > budget:
      low = price
    else:
      high, fewest = price, chosen
  # The sums were rounded, and so might the bound have been, downwards.
  return fewest, bound * (1 + 2.0**-40)


def _filled(
  tree: DemandTree, chosen: Bool[np.ndarray, "nodes"], budget: int
) -> Bool[np.ndarray, "nodes"]:
  """Chooses more nodes while there is budget, that which gains most first.

  What a node gains is the demand below it that no deeper state serves, times
  the cost from the nearest state above. Both fall as others are chosen, so that
  a gain that is still the largest after it was looked at again is the largest.
  """
  chosen, parents = chosen.copy(), tree.parents.tolist()
  free = tree.demand.astype(np.float64)
  for node in range(len(tree) - 1, -1, -1):
    if parents[node] != NO_PARENT and not chosen[node]:
      free[parents[node]] += free[node]

  def gain(node: int) -> float:
    above = parents[node]
    while above != NO_PARENT and not chosen[above]:
      above = parents[above]
    spared = tree.cost[node] - (0 if above == NO_PARENT else tree.cost[above])
    return float(free[node]) * float(spared)

  queue = [(-gain(node), node) for node in np.flatnonzero(~chosen).tolist()]
  heapq.heapify(queue)
  left = budget - int(np.count_nonzero(chosen))
  while left and queue:
    known, node = heapq.heappop(queue)
    now = gain(node)
    if now < -known:
      heapq.heappush(queue, (-now, node))
      continue
    if now <= 0:
      break
    chosen[node], left = True, left - 1
    above = parents[node]
    while above != NO_PARENT:
      free[above] -= free[node]
      if chosen[above]:
        break
      above = parents[above]
  return chosen
