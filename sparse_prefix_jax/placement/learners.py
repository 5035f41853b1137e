"""What a policy by name learns from: overlaps, or what states are worth."""

from typing import TypeAlias

import numpy as np

from sparse_prefix_jax.placement.conditional import Conditional
from sparse_prefix_jax.placement.policy import LEARNED, PlacementPolicy
from sparse_prefix_jax.placement.pooled import Pooled
from sparse_prefix_jax.placement.worth import Adaptive

OverlapLearner: TypeAlias = Conditional | Pooled
"""Statistics of overlaps, and plans that are made from them."""


def worth_of(policy: PlacementPolicy, cost: np.ndarray | None) -> Adaptive:
  """Returns what states are worth under a policy of `SHARED`, as yet unknown.

  Args:
    policy: The policy.
    cost: [N] Cumulative cost of prefilling to each depth, checked; None counts
      tokens.

  >>> worth_of(PlacementPolicy("adaptive"), None).held_count
  0
  """
  if cost is None:
    return Adaptive(block=policy.chunk)
  last = cost.size - 1
  return Adaptive(
    block=policy.chunk,
    # Nothing resumes beyond the longest sequence.
    cost=lambda depth: float(cost[min(depth, last)]),
  )


def learner_of(
  policy: PlacementPolicy, depths: int, cost: np.ndarray | None, *, beside: bool
) -> OverlapLearner | None:
  """Returns the statistics of a policy that learns overlaps, None for others.

  Args:
    policy: The policy.
    depths: Number of depth bins N.
    cost: [N] As of `worth_of`.
    beside: Whether plans are made beside the requests.

  >>> learner_of(PlacementPolicy("last"), 16, None, beside=False) is None
  True
  """
  if policy.name not in LEARNED:
    return None
  budget = policy.budget or 0
  common = {
    "chunk": policy.chunk,
    "depths": depths,
    "decay": policy.decay if policy.replan == "decaying" else 1.0,
    "cost": cost,
  }
  if policy.name == "conditional":
    return Conditional(budget=budget, beside=beside, **common)
  return Pooled(policy.name, budget=int(budget), **common)
