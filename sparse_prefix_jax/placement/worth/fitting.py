"""Hazards from counts, where what is known of few leans on more: `fitted`.

A cell of which little is known leans on the level above it,

    hazard = (events + s) / (exposure + s / hazard of the level above),  s = 1

which is its own rate after many events, and that of the level above before.
Above the first level stands h0 / (age + 2), h0 = 0.02: with age, prefixes die.
"""

import numpy as np
from jaxtyping import Float64

from sparse_prefix_jax.placement.worth.ages import EDGES

_STRENGTH = 1.0
_FIRST_GUESS = 0.02 / (EDGES[:-1] + 2)
# More than three visits per request and candidate are noise.
_MOST = 3.0


def fitted(
  events: Float64[np.ndarray, "*facts bins"],
  exposure: Float64[np.ndarray, "*facts bins"],
) -> Float64[np.ndarray, "*facts bins"]:
  """Returns hazards of the finest level, each leaning on the one above.

  Args:
    events: Visits, by facts from the one that says most.
    exposure: Requests waited.
  """
  facts, rates = events.ndim - 1, _FIRST_GUESS
  for known in range(facts + 1):  # Finer facts are summed away.
    finer = tuple(range(known, facts))
    above = rates[..., None, :] if known else rates
    rates = (events.sum(finer) + _STRENGTH) / (
      exposure.sum(finer) + _STRENGTH / above
    )
  return np.minimum(rates, _MOST)
