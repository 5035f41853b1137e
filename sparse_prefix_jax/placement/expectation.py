"""What is expected to be computed again, given where states are kept."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64


def expected_lost(
  survival: Float64[np.ndarray, "n"], depths: Sequence[int]
) -> float:
  """Says how much of an overlap lies behind the state before its end.

  With S(s) the probability that a prompt which matches an entry leaves it at
  depth s or deeper, the overlap is sum_s S(s) on average, and the states at
  d_1 < d_2 < ... spare sum_i (d_i - d_{i-1}) S(d_i) of it.

  Args:
    survival: [n] S at the depths 1 to n, never increasing; any factor of it
      is divided out, so that S(1) is 1.
    depths: Where states are kept, from 1 to n, ascending.

  Returns:
    Depths lost, on average; 0 where nothing is expected to match.

  >>> expected_lost(np.array([1.0, 1.0, 0.5, 0.5]), [2])
  1.0
  """
  if not survival.size or not survival[0]:
    return 0.0
  chance = survival / survival[0]
  kept = np.array(depths, np.int64)
  spared = np.diff(kept, prepend=0) * chance[kept - 1]
  return float(chance.sum() - spared.sum())
