"""Ages of candidates, in requests, and the bins that a hazard is constant in.

Re-use is bursty: what matters is whether a prefix was last asked for 2 or 20
requests ago, hardly whether it was 2,000 or 2,020. So bins grow in proportion
to the age: edges 0, 1, then e, max(e + 1, round(1.42 e)), ..., 30 bins, of
which the last reaches to 2^20 and further.
"""

import numpy as np
from jaxtyping import Float64, Int64

BINS = 30
"""How many bins of age there are."""


HORIZONS = 2 ** np.arange(14)
"""int64 [14], the horizons T that demand is foreseen for, in requests."""


def _edges() -> np.ndarray:
  """The edges of the bins, float64 [BINS + 1]."""
  edges = [0, 1]
  while len(edges) < BINS:
    edges.append(max(edges[-1] + 1, round(1.42 * edges[-1])))
  return np.array([*edges, 2**20], np.float64)


EDGES = _edges()
"""float64 [BINS + 1], where bins begin; the last is where the last one ends."""

_WIDTHS = np.diff(EDGES)
_OLDEST = int(EDGES[BINS - 1])
# The bin of every whole age up to the last bin: one look-up, no search.
_BIN_OF = np.searchsorted(EDGES, np.arange(_OLDEST + 1), "right") - 1


def age_bins(ages: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
  """Returns the bin of every age; whatever is older is in the last one.

  Args:
    ages: Requests, not negative.

  >>> age_bins(np.array([0, 1, 2, 10**9])).tolist()
  [0, 1, 2, 29]
  """
  return _BIN_OF.take(np.minimum(ages, _OLDEST))


def spread(ages: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n bins"]:
  """Returns how many requests of each age every bin has seen pass.

  Args:
    ages: Requests, not negative, at most 2^20 of which count.

  >>> spread(np.array([3]))[0, :5].tolist()
  [1.0, 1.0, 1.0, 0.0, 0.0]
  """
  return np.clip(ages[:, None] - EDGES[:-1], 0, _WIDTHS)


def integral_to_edges(
  rates: Float64[np.ndarray, "*n bins"],
) -> Float64[np.ndarray, "*n bins"]:
  """Returns the integral of a rate from age 0 to where each bin begins.

  Args:
    rates: Per request, constant within a bin.

  >>> integral_to_edges(np.full(BINS, 0.5))[:4].tolist()
  [0.0, 0.5, 1.0, 1.5]
  """
  ends = np.cumsum(rates * _WIDTHS, axis=-1)
  return np.concatenate([np.zeros_like(ends[..., :1]), ends[..., :-1]], axis=-1)
