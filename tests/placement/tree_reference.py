"""The best nodes of a tree by trying all choices; imports nothing of ours."""

import itertools

import numpy as np


def random_tree(rng, nodes, *, whole=True, roots=2):
  """Parents, cost and demand of a random tree; some have no demand."""
  parents = [-1] * min(roots, nodes)
  parents += [int(rng.integers(0, i)) for i in range(len(parents), nodes)]
  cost, demand = [], []
  for parent in parents:
    step = rng.integers(0, 12) if whole else rng.random()
    cost.append((0 if parent < 0 else cost[parent]) + step)
    weight = rng.integers(1, 9) if whole else rng.random()
    demand.append(weight if rng.random() < 0.6 else 0)
  return np.array(parents), np.array(cost), np.array(demand)


def saved(parents, cost, demand, nodes):
  """Climbs from every node until one is met that keeps a state."""
  total = 0
  for node, weight in enumerate(demand.tolist()):
    while node != -1 and node not in nodes:
      node = parents[node]
    total += weight * (0 if node == -1 else cost[node].item())
  return total


def exhaustive(parents, cost, demand, budget):
  """The most that any choice of so many nodes saves."""
  every = range(len(parents))
  choices = itertools.combinations(every, min(budget, len(parents)))
  return max(saved(parents, cost, demand, set(c)) for c in choices)
