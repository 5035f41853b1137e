"""What is expected to be computed again, given where states are kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.whole_numbers import check_at_least


def depths_of(positions: Any, *, chunk: int, deepest: int) -> list[int]:
  """Says at which depths states are, ascending.

  Args:
    positions: In tokens; those within the first chunk are none.
    chunk: Tokens per depth.
    deepest: What lies deeper counts there; 0 for no depth at all.

  Raises:
    ValueError: If they are no list of integers, or one is negative.

  >>> depths_of((128, 64, 900), chunk=64, deepest=8)
  [1, 2, 8]
  """
  try:
    given = list(positions)
  except TypeError:
    raise ValueError(
      f"positions is {brief(positions)}; it must be a list of integers."
    ) from None
  whole = [check_at_least("positions: a position", one, 0) for one in given]
  return sorted({min(one // chunk, deepest) for one in whole} - {0})


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
