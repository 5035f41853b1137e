"""How much a candidate will be wanted, over horizons from 1 to 8,192 requests.

With H the integral of its cell's hazard, a candidate of age a is wanted

    (events + 2) / (expected + H(a) + 2) * (H(a + T) - H(a))

times within the next T requests. The first factor is its *frailty*: how often
it was visited against how often its cells had expected, drawn towards 1. There
are several horizons because a state is of use until it is evicted, and nobody
knows when that will be: a prefix that is wanted soon, and one that is wanted
late but for long, are compared by the best rate that each reaches (`flow`).
"""

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.worth.ages import HORIZONS
from sparse_prefix_jax.placement.worth.hazards import Hazards

_FRAILTY = 2.0


def demand(
  hazards: Hazards,
  cells: Int64[np.ndarray, "n"],
  ages: Int64[np.ndarray, "n"],
  events: Float64[np.ndarray, "n"],
  expected: Float64[np.ndarray, "n"],
) -> Float64[np.ndarray, "n 14"]:
  """Returns how often each candidate will be wanted within every horizon.

  Args:
    hazards: Those of the last refit.
    cells: The cell of each candidate.
    ages: Requests since its last visit.
    events: How often it was where a request left what was known.
    expected: How often that had been expected up to its last visit.

  >>> one = np.array([1])
  >>> wanted = demand(Hazards(), 0 * one, one, 0.0 * one, 0.0 * one)
  >>> bool((np.diff(wanted[0]) > 0).all())
  True
  """
  if not ages.any():  # All were visited just now.
    frailty = (events + _FRAILTY) / (expected + _FRAILTY)
    return frailty[:, None] * hazards.to_horizons(cells)
  so_far = hazards.integral(cells, ages)
  until = hazards.integral(cells[:, None], ages[:, None] + HORIZONS)
  frailty = (events + _FRAILTY) / (expected + so_far + _FRAILTY)
  return frailty[:, None] * (until - so_far[:, None])
