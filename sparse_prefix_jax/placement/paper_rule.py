"""The paper's histogram dynamic program, in float64, rounding included.

It is here to be compared with: `dynamic_program` solves the same problem
exactly and faster. Its O(N^2 M) recurrence is over the cost that is left, not
over what is saved, and rounding decides its ties, so that the order of the
floating point operations below is part of the rule.
"""

import numpy as np
from jaxtyping import Float64, Int64


def _argmins(
  weights: Float64[np.ndarray, "N"], budget: int
) -> Int64[np.ndarray, "m N-1"]:
  """The first best last position `s` for every number of states and end j.

  With W[k] and T[k] the sums of w[t] and of t w[t] over t < k, and
  cost_0[j] = T[j+1], cost_m[0] = 0, for j >= 1:

      cost_m[j] = min over 1 <= s <= j of
                  cost_{m-1}[s-1] + T[j+1] - T[s] - s (W[j+1] - W[s])

  evaluated from left to right.

  Returns:
    [m - 1, j - 1] -> s, for m = 1 .. budget and j = 1 .. N - 1.
  """
  depths = weights.shape[0]
  mass = np.concatenate([[0.0], np.cumsum(weights)])
  moment = np.concatenate([[0.0], np.cumsum(np.arange(depths) * weights)])
  s = np.arange(1, depths)
  ends, starts = moment[2:, None], moment[1:-1]
  saved = s * (mass[2:, None] - mass[1:-1])
  saved[s > s[:, None]] = -np.inf  # s <= j
  cost, choices = moment[1:], np.zeros((budget, depths - 1), np.int64)
  buffer = np.empty_like(saved)
  for row in choices:
    np.add(cost[:-1], ends, out=buffer)
    np.subtract(buffer, starts, out=buffer)
    np.subtract(buffer, saved, out=buffer)
    np.argmin(buffer, axis=1, out=row)
    best = np.take_along_axis(buffer, row[:, None], axis=1)[:, 0]
    cost = np.concatenate([[0.0], best])
    row += 1
  return choices


def solve_paper_rule(
  counts: Float64[np.ndarray, "N"], budget: int
) -> list[int]:
  """Returns the positions of the paper's rule, found from the last bin back.

  Args:
    counts: [N] Decayed counts of overlap depths, not all zero, N >= 2.
    budget: States per entry.

  Returns:
    Ascending depth bins > 0, at most `budget` of them.

  >>> solve_paper_rule(np.array([0.0, 5, 0, 1, 9, 0]), 2)
  [1, 4]
  """
  choices = _argmins(counts / counts.sum(), budget)
  positions, end = [], counts.shape[0] - 1
  for row in choices[::-1]:
    if end == 0:
      break
    position = int(row[end - 1])
    positions.append(position)
    end = position - 1
  return positions[::-1]
