"""`adaptive` on streams on which simple rules fail, in tokens of the bound."""

import pytest

from sparse_prefix_jax.evaluation import Capacity, simulate
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import adversarial_streams

# Checks of types would take most of the time: they are long replays.
pytestmark = pytest.mark.usefixtures("unchecked_types")

STREAMS = adversarial_streams()


@pytest.mark.parametrize(
  "name, slots, bound, percent",
  [
    ("hot_prefix", 4, 2_273_280, 95),
    ("cyclic_scan", 16, 19_452_616, 95),
    ("regime_change", 4, 32_636_538, 90),
    ("two_tenants", 6, 25_120_768, 89),
  ],
)
def test_what_is_saved_and_what_could_be(name, slots, bound, percent):
  """The bounds were computed by another program, of other prices."""
  report = simulate(
    STREAMS[name],
    PlacementPolicy("adaptive", chunk=512),
    Capacity("states", slots),
  )
  assert 0.99 * bound <= report.upper_bound_tokens <= 1.01 * bound
  assert report.tokens_saved >= percent / 100 * bound
  last = simulate(
    STREAMS[name],
    PlacementPolicy("last", chunk=512),
    Capacity("states", slots),
  )
  assert last.tokens_saved < 0.65 * bound
