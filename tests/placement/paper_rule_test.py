import numpy as np
import pytest

from sparse_prefix_jax.placement.paper_rule import solve_paper_rule
from tests.placement import reference


def literal(counts, budget):
  """The rule as it is written down, scalar by scalar."""
  w = counts / counts.sum()
  n = len(w)
  mass, moment = [0.0], [0.0]
  for t in range(n):
    mass.append(mass[-1] + w[t])
    moment.append(moment[-1] + t * w[t])
  cost, choices = [moment[j + 1] for j in range(n)], []
  for _ in range(budget):
    new, choice = [0.0], [0]
    for j in range(1, n):
      values = [
        cost[s - 1] + moment[j + 1] - moment[s] - s * (mass[j + 1] - mass[s])
        for s in range(1, j + 1)
      ]
      choice.append(1 + values.index(min(values)))
      new.append(min(values))
    cost = new
    choices.append(choice)
  positions, j = [], n - 1
  for choice in choices[::-1]:
    if j == 0:
      break
    positions.append(choice[j])
    j = choice[j] - 1
  return positions[::-1]


@pytest.mark.parametrize("budget", [0, 1, 3, 25])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_rule_to_the_last_bit(budget, seed):
  rng = np.random.default_rng(seed)
  counts = rng.random(21) * (rng.random(21) < 0.4) + (np.arange(21) == 7)
  assert solve_paper_rule(counts, budget) == literal(counts, budget)


def test_is_optimal_up_to_rounding():
  rng = np.random.default_rng(5)
  counts = rng.random(60)
  cost = np.arange(60.0)
  reached = reference.objective(counts, cost, solve_paper_rule(counts, 4))
  np.testing.assert_allclose(reached, reference.plain(counts, cost, 4))
