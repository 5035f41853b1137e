from benchmarks.latency import Case, LatencyMeter
from sparse_prefix_jax import preset

CASES = [Case(130, 0, 2), Case(200, 128, 1), Case(130, 64, 0)]


def test_every_case_is_what_the_cache_did_and_leaves_nothing():
  meter = LatencyMeter(preset("tiny"), CASES)
  states = set(meter.cache.store.index.states)
  for case in CASES:
    # Raises where it resumed elsewhere or captured another number.
    assert meter.seconds(case) > 0
  assert set(meter.cache.store.index.states) == states
