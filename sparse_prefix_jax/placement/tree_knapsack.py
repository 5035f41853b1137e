"""The best nodes of a prefix tree: a knapsack over the tree, exactly.

For a node v, with a its nearest ancestor that keeps a state (or none), let
f_v(a, k) be the most that requests below v and at v can be saved by at most k
states below v and at v. With (+) the sum over children, whose states are shared
out in the best way,

    f_v(a, k) = max( w(v) F(a) + (+)_c f_c(a, k),
                     w(v) F(v) + (+)_c f_c(v, k - 1) ).

A row of an array stands for each a, of which v has as many as it lies deep in
the compressed tree. Each pair of nodes meets once in the sums, so that time
grows with nodes, depth and budget, not with their powers. What is irregular
(each node has other rows and columns) stays on the host; a row is a vector.
"""

import numpy as np
from jaxtyping import Int64

from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.placement.demand_tree import (
  NO_PARENT,
  DemandTree,
  TreePlacement,
)
from sparse_prefix_jax.placement.inputs import check_budget

_MOST_BYTES = 2**31
"""What the arrays of all nodes may take, and the sums of one with children."""


def solve_tree(tree: DemandTree, budget: int) -> TreePlacement:
  """Chooses the best nodes of a tree to keep a state.

  Whole numbers are solved exactly; floats in float64, as exactly as sums of
  them are.

  Args:
    tree: The problem.
    budget: At most so many states, K.

  Returns:
    The choice; its upper bound is what it saves.

  Raises:
    ValueError: If it is no tree, the budget is no integer of at least 0, or if
      the tree is so large that `solve_tree_priced` is needed.

  Example:
    >>> tree = DemandTree.of([-1, 0, 0, 0], [10, 19, 19, 19], [0, 1, 1, 1])
    >>> [solve_tree(tree, k).saved for k in range(4)]
    [0, 30, 39, 57]
    >>> solve_tree(tree, 3).nodes
    array([1, 2, 3])
  """
  check_class("tree", tree, DemandTree, "of `DemandTree.of`")
  budget = check_budget(budget)
  small, numbers = tree.compressed()
  table = _Table(small, min(budget, len(small)))
  nodes = numbers[table.choice()]
  saved = table.best()
  return TreePlacement(nodes, saved, saved)


class _Table:
  """f_v(a, k) of every node v.

  Attributes:
    depth: How many ancestors each node has. [nodes]
    children: The children of each node, and of none: the roots.
    values: An array [1 + depth, 1 + states] of each node: row 0 for no
      ancestor that keeps a state, row 1 + i for the i-th from the root.
  """

  def __init__(self, tree: DemandTree, budget: int) -> None:
    """Fills the table, children before their parents."""
    self.tree, self.budget = tree, budget
    self.depth, self.children = _shape_of(tree)
    _check_size(tree, self.depth, budget)
    self.values: list[np.ndarray] = [np.empty((0, 0))] * len(tree)
    for node in range(len(tree) - 1, -1, -1):
      self.values[node] = self._solved(node)

  def _ancestors(self, node: int) -> list[int]:
    """The ancestors of a node, from the root on."""
    found = []
    while (node := int(self.tree.parents[node])) != NO_PARENT:
      found.append(node)
    return found[::-1]

  def _solved(self, node: int) -> np.ndarray:
    """f_v from those of its children."""
    tree, rows = self.tree, 1 + self.depth[node]
    spared = np.append(0, tree.cost[self._ancestors(node)])
    shared = self._shared(node, slice(None))
    skipped = tree.demand[node] * spared[:, None] + shared[:rows]
    kept = tree.demand[node] * tree.cost[node] + shared[rows]
    size = min(skipped.shape[1] + 1, 1 + self.budget)
    values = np.empty((rows, size), tree.cost.dtype)
    values[:, : skipped.shape[1]] = skipped[:, :size]
    values[:, skipped.shape[1] :] = skipped[:, -1:]
    np.maximum(values[:, 1:], kept[: size - 1], out=values[:, 1:])
    return values

  def _shared(self, node: int, rows: slice) -> np.ndarray:
    """The best sums over the children of a node, in some of the rows."""
    total = np.zeros((2 + self.depth[node], 1), self.tree.cost.dtype)[rows]
    for child in self.children[node]:
      total = _best_sums(total, self.values[child][rows], self.budget)
    return total

  def best(self) -> int | float:
    """What the best choice saves."""
    total = np.zeros((1, 1), self.tree.cost.dtype)
    for root in self.children[NO_PARENT]:
      total = _best_sums(total, self.values[root], self.budget)
    return total[0, -1].item()

  def choice(self) -> Int64[np.ndarray, "m"]:
    """The nodes of a best choice, found from the roots downwards."""
    chosen, waiting = [], list(self._split(NO_PARENT, 0, self.budget))
    while waiting:
      node, row, states = waiting.pop()
      states = min(states, self.values[node].shape[1] - 1)
      skipped = self._skipped(node, row, states)
      if skipped < self.values[node][row, states]:
        chosen.append(node)
        row, states = 1 + self.depth[node], states - 1
      waiting += self._split(node, row, states)
    return np.array(sorted(chosen), np.int64)

  def _skipped(self, node: int, row: int, states: int) -> np.number:
    """The best without a state at a node itself."""
    above = [0, *self.tree.cost[self._ancestors(node)]]
    shared = self._shared(node, slice(row, row + 1))[0]
    own = self.tree.demand[node] * above[row]
    return own + shared[min(states, len(shared) - 1)]

  def _split(
    self, node: int, row: int, states: int
  ) -> list[tuple[int, int, int]]:
    """How the children of a node share its states: child, row, states."""
    children, rows = self.children[node], slice(row, row + 1)
    sums = [np.zeros((1, 1), self.tree.cost.dtype)]
    for child in children:
      sums.append(_best_sums(sums[-1], self.values[child][rows], self.budget))
    parts = []
    for child, before in zip(reversed(children), reversed(sums[:-1])):
      own = self.values[child][row]
      states = min(states, before.shape[1] + len(own) - 2)
      counts = np.arange(min(states, len(own) - 1) + 1)
      rest = np.minimum(states - counts, before.shape[1] - 1)
      # Of equally good shares the smallest, which keeps the fewest states.
      most = int(np.argmax(own[counts] + before[0, rest]))
      parts.append((child, row, most))
      states -= most
    return parts


def _shape_of(tree: DemandTree) -> tuple[list[int], dict[int, list[int]]]:
  """The depth of every node, and the children of each and of none."""
  depth: list[int] = []
  children: dict[int, list[int]] = {
    node: [] for node in range(NO_PARENT, len(tree))
  }
  for node, parent in enumerate(tree.parents.tolist()):
    depth.append(0 if parent == NO_PARENT else depth[parent] + 1)
    children[parent].append(node)
  return depth, children


def _check_size(tree: DemandTree, depth: list[int], budget: int) -> None:
  """Refuses a tree whose table would not fit the memory."""
  states = [1] * len(tree)
  for node in range(len(tree) - 1, -1, -1):
    if tree.parents[node] != NO_PARENT:
      states[tree.parents[node]] += states[node]
  cells = sum((1 + d) * (1 + min(s, budget)) for d, s in zip(depth, states))
  # Who shares states out among many children has the sums with each of them.
  below, sums = [0] * (len(tree) + 1), [0] * (len(tree) + 1)
  for parent, some in zip(tree.parents.tolist(), states):  # None is the last.
    below[parent] += some
    sums[parent] += 1 + min(below[parent], budget)
  cells += max(sums)
  if 8 * cells > _MOST_BYTES:
    raise ValueError(
      f"a tree of {len(tree)} nodes with demand and a budget of {budget} need"
      f" {8 * cells} bytes, more than {_MOST_BYTES}: use solve_tree_priced"
    )


def _best_sums(left: np.ndarray, right: np.ndarray, most: int) -> np.ndarray:
  """Adds rows: for every k, the most that left[i] + right[k - i] can be.

  Args:
    left: [rows, i], never decreasing along i.
    right: [rows, j], likewise.
    most: The largest k that is of interest.

  Returns:
    [rows, k]
  """
  if left.shape[1] < right.shape[1]:
    left, right = right, left
  wide = left.shape[1]
  size = min(wide + right.shape[1] - 1, most + 1)
  sums = np.zeros((left.shape[0], size), left.dtype)
  for j in range(min(right.shape[1], size)):
    part = sums[:, j : j + wide]
    np.maximum(part, left[:, : part.shape[1]] + right[:, j : j + 1], out=part)
  return sums
