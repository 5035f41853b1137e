"""Placement solvers in plain NumPy and Python that import nothing of ours."""

import itertools

import numpy as np


def objective(weights, cost, positions):
  """Cost recomputed over all weights, in Python numbers."""
  total = 0
  for depth, weight in enumerate(weights):
    kept = [cost[p] for p in positions if 0 <= p <= depth]
    total += weight * (cost[depth] - max(kept, default=0))
  return total


def exhaustive(weights, cost, budget):
  """The least objective over every set of at most `budget` positions."""
  depths = range(1, len(weights))
  sets = itertools.chain.from_iterable(
    itertools.combinations(depths, m)
    for m in range(min(budget, len(depths)) + 1)
  )
  return min(objective(weights, cost, s) for s in sets)


def plain(weights, cost, budget):
  """The least objective by the O(N^2 M) recurrence, int64 or float64."""
  survival = np.cumsum(weights[::-1])[::-1]
  values = np.zeros_like(survival)
  values[1:] = -1
  best = survival[0] * 0
  for _ in range(min(budget, len(weights) - 1)):
    reachable = values >= 0
    values = np.array(
      [values[0]]
      + [
        np.max((values[:s] + (cost[s] - cost[:s]) * survival[s])[reachable[:s]])
        for s in range(1, len(weights))
      ]
    )
    best = max(best, values.max())
  return (weights * cost).sum() - best
