import itertools

import pytest

from sparse_prefix_jax.evaluation import (
  Capacity,
  ModelSizes,
  bounds_over_time,
  simulate,
)
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import changed_regime

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

STREAM = changed_regime(before=60, after=40, documents_first=True)
SIZES = ModelSizes(state_bytes=1000, page_bytes=10)


def replay(capacity, warmup=0.0):
  return simulate(
    STREAM,
    PlacementPolicy("adaptive", chunk=STREAM.block),
    capacity,
    sizes=SIZES,
    warmup_fraction=warmup,
    state_share="undivided",
  )


@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize(
  "capacity", [Capacity("states", 4), Capacity("bytes", 8000)]
)
def test_no_stretch_saves_more_than_its_bound(capacity, warmup):
  report = replay(capacity, warmup)
  found = bounds_over_time(
    STREAM, report, chunk=STREAM.block, sizes=SIZES, stretches=7
  )
  assert found[0].first == 0 and found[-1].last == report.requests
  for stretch, following in itertools.pairwise(found):
    assert stretch.last == following.first
  for first, last, bound in found:
    saved = sum(one.restored for one in report.outcomes[first:last])
    assert bound is not None and saved <= bound
  bounds = [bound for _, _, bound in found]
  assert sum(bounds) >= report.upper_bound_tokens
  (whole,) = bounds_over_time(
    STREAM, report, chunk=STREAM.block, sizes=SIZES, stretches=1
  )
  assert whole == (0, report.requests, report.upper_bound_tokens)


def test_who_is_refused_has_no_part_in_it():
  report = replay(Capacity("bytes", 2400))
  assert 0 < report.refused_requests < report.requests
  (whole,) = bounds_over_time(
    STREAM, report, chunk=STREAM.block, sizes=SIZES, stretches=1
  )
  assert whole.bound == report.upper_bound_tokens


def test_the_paper_has_no_bound_and_bad_input_is_refused():
  policy = PlacementPolicy("last", chunk=STREAM.block)
  report = simulate(STREAM, policy, Capacity("sequences", 8))
  found = bounds_over_time(STREAM, report, chunk=STREAM.block, stretches=999)
  assert len(found) == 100 and {s.bound for s in found} == {None}
  with pytest.raises(ValueError, match="stretches must be at least 1, got 0"):
    bounds_over_time(STREAM, report, chunk=STREAM.block, stretches=0)
  with pytest.raises(ValueError, match="needs sizes"):
    bounds_over_time(
      STREAM, replay(Capacity("bytes", 8000)), chunk=STREAM.block
    )
