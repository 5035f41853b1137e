"""Which nodes of a prefix tree should keep a state: the problem.

A request follows a path of the tree and leaves it at some node. It resumes from
the deepest node on its path that keeps a state, the one that it leaves at
included, and is spared the cost F of the prefix up to there. K nodes are to be
chosen such that

    sum over v of  w(v) F(deepest chosen node at v or above)

is largest, where w(v) is how many requests leave the tree at v, and F of none
is 0. Along one path that is the placement problem of one entry, whose gains
fall with the budget. On a tree they need not: of a node at depth 10 with three
children at depth 19, each left by one request, the first state gains 30 (at the
node), the second 9, the third 18 (all three children).

`solve_tree` finds the best choice, `solve_tree_priced` a good one in a tree of
any size, with a bound on what it may lack.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike

from sparse_prefix_jax.array_typing import NodeValues
from sparse_prefix_jax.kinds import host_array

NO_PARENT = -1
"""Parent of a node that has none."""

_MOST = 2**62  # what saved sums may reach; int64 holds twice as much


class TreePlacement(NamedTuple):
  """A choice of nodes, and how good it is.

  Attributes:
    nodes: Numbers of the chosen nodes in ascending order. [m]
    saved: The sum that it reaches: demand times cost.
    upper_bound: What no choice of as many nodes exceeds.
  """

  nodes: Int64[np.ndarray, "m"]
  saved: int | float
  upper_bound: int | float


@dataclass(frozen=True, eq=False)
class DemandTree:
  """A prefix tree, the cost of its prefixes and who asks for them.

  Attributes:
    parents: The number of each node's parent, which is smaller than its own;
      `NO_PARENT` where a path begins. [nodes]
    cost: What prefilling costs up to each node and with it, never less than up
      to its parent. [nodes]
    demand: How many requests leave the tree at each node, or what they weigh.
      [nodes]

  Raises:
    ValueError: If the arrays are none of int64 or float64, or cost and demand
      not of one of them (`of` makes them so of anything else), a parent does
      not come first, a cost falls on a path, a value is negative or not finite,
      or if numbers are so large that sums of them may not be exact or finite.

  Example:
    >>> tree = DemandTree.of([-1, 0, 0], [10, 19, 19], [0, 1, 1])
    >>> tree.parents
    array([-1,  0,  0])
  """

  parents: Int64[np.ndarray, "nodes"]
  cost: NodeValues
  demand: NodeValues

  def __post_init__(self) -> None:
    """Checks all values; narrower types would overflow in sums."""
    arrays = {field: getattr(self, field) for field in _KINDS}
    for field, kinds in _KINDS.items():
      kind = getattr(arrays[field], "dtype", None)
      if not isinstance(arrays[field], np.ndarray) or kind not in kinds:
        raise ValueError(
          f"{field} must be an array of {' or '.join(kinds)}, got"
          f" {kind or type(arrays[field]).__name__}; DemandTree.of makes it one"
        )
    _check_arrays(arrays)
    _check_values(self)

  @classmethod
  def of(
    cls, parents: ArrayLike, cost: ArrayLike, demand: ArrayLike
  ) -> "DemandTree":
    """Makes a tree of vectors or lists; whole numbers stay whole.

    Args:
      parents: As in the attributes.
      cost: As in the attributes.
      demand: As in the attributes.

    Raises:
      ValueError: If they are no vectors of numbers, of one size, or as the
        class says.

    Example:
      >>> len(DemandTree.of([-1, 0], [1.5, 2.5], [1, 1]))
      2
    """
    given = {"parents": parents, "cost": cost, "demand": demand}
    arrays = {name: host_array(name, values) for name, values in given.items()}
    _check_arrays(arrays)
    # An empty list is one of floats for NumPy.
    whole = all(x.dtype.kind in "iu" or not x.size for x in arrays.values())
    kind = np.int64 if whole else np.float64
    cost, demand = (arrays[name].astype(kind) for name in ("cost", "demand"))
    return cls(arrays["parents"].astype(np.int64), cost, demand)

  def __len__(self) -> int:
    """How many nodes there are."""
    return len(self.parents)

  def below(self) -> NodeValues:
    """Sums the demand of each node and of all nodes below it. [nodes]"""
    total = self.demand.copy()
    for node in range(len(self) - 1, -1, -1):
      if self.parents[node] != NO_PARENT:
        total[self.parents[node]] += total[node]
    return total

  def compressed(self) -> tuple["DemandTree", Int64[np.ndarray, "m"]]:
    """Leaves out nodes that no best choice needs.

    Where nobody leaves, and all that come by go on to one child, the child
    saves each of them more. What nobody comes by saves nothing.

    Returns:
      The smaller tree, and which node each of its nodes is. [m]

    Example:
      >>> tree = DemandTree.of([-1, 0, 1], [10, 20, 30], [0, 0, 1])
      >>> tree.compressed()[1]
      array([2])
    """
    below = self.below()
    parents = self.parents[(below > 0) & (self.parents != NO_PARENT)]
    branches = np.bincount(parents, minlength=len(self))
    kept = (below > 0) & ((self.demand > 0) | (branches > 1))
    nodes = np.flatnonzero(kept)
    # The later number of each node, or of its nearest ancestor that is kept.
    nearest = np.where(kept, np.cumsum(kept) - 1, NO_PARENT)
    for node in np.flatnonzero(~kept & (self.parents != NO_PARENT)):
      nearest[node] = nearest[self.parents[node]]
    above = self.parents[nodes]
    parents = np.where(above == NO_PARENT, NO_PARENT, nearest[above])
    return DemandTree(parents, self.cost[nodes], self.demand[nodes]), nodes


_KINDS = {
  "parents": ("int64",),
  "cost": ("int64", "float64"),
  "demand": ("int64", "float64"),
}


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
  """Refuses arrays that are no numbers, or do not belong together."""
  for name, array in arrays.items():
    host_array(name, array)  # A mask would be lost.
    kinds = "iu" if name == "parents" else "iuf"
    # An empty list has no type of its own.
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
      what = "whole numbers" if name == "parents" else "numbers"
      raise ValueError(
        f"{name} must be a vector of {what}, got {array.dtype} of shape"
        f" {array.shape}"
      )
  sizes = {name: array.size for name, array in arrays.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f"a tree must have one value per node, got {sizes}")


def _check_values(tree: DemandTree) -> None:
  """Refuses values that are no tree, or no cost and demand of one."""
  inner = tree.parents != NO_PARENT
  known = (tree.parents >= NO_PARENT) & (tree.parents < np.arange(len(tree)))
  if not known.all():
    node = int(np.argmin(known))
    raise ValueError(
      f"parents[{node}] must be {NO_PARENT} or the number of an earlier node,"
      f" got {tree.parents[node]}"
    )
  for name in ("cost", "demand"):
    values = getattr(tree, name)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
      node = int(np.argmax(bad))
      raise ValueError(
        f"{name}[{node}] must be finite and not negative, got {values[node]}"
      )
  falls = np.zeros(len(tree), bool)
  falls[inner] = tree.cost[inner] < tree.cost[tree.parents[inner]]
  if falls.any():
    raise ValueError(
      f"cost[{int(np.argmax(falls))}] must not be below that of its parent"
    )
  kinds = tree.cost.dtype, tree.demand.dtype
  if kinds[0] != kinds[1]:
    raise ValueError(
      f"cost holds {kinds[0]} and demand {kinds[1]}; they must be of one kind,"
      " as DemandTree.of makes them"
    )
  largest = max(tree.cost.tolist(), default=0) * sum(tree.demand.tolist())
  if largest == math.inf:
    raise ValueError(
      "cost and demand must be finite when multiplied, got sums beyond float64"
    )
  if not largest < _MOST and tree.cost.dtype.kind == "i":
    raise ValueError(
      "cost and demand must be below 2**62 when multiplied, got sums up to"
      f" {largest}"
    )


def saved_by(tree: DemandTree, nodes: Int64[np.ndarray, "m"]) -> int | float:
  """Returns what a choice of nodes saves.

  Args:
    tree: The problem.
    nodes: The chosen ones, in any order.

  Example:
    >>> tree = DemandTree.of([-1, 0, 0], [10, 19, 19], [0, 1, 1])
    >>> saved_by(tree, np.array([0, 2]))
    29
  """
  spared = np.zeros_like(tree.cost)
  spared[nodes] = tree.cost[nodes]
  for node in np.flatnonzero(tree.parents != NO_PARENT):
    spared[node] = max(spared[node], spared[tree.parents[node]])
  return (spared * tree.demand).sum().item()
