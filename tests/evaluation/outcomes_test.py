import numpy as np
import pytest

from sparse_prefix_jax.evaluation import Capacity, ModelSizes, simulate
from sparse_prefix_jax.evaluation.outcomes import (
  Outcome,
  expected_and_realised,
)
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import (
  Trace,
  TraceRequest,
  adversarial_streams,
)

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

BLOCK = 16


def blocks(*rows: list[int]) -> Trace:
  requests = tuple(
    TraceRequest(ids=np.array(row, np.int32), length=BLOCK * len(row))
    for row in rows
  )
  return Trace("blocks", requests, block=BLOCK)


STREAM = blocks([1, 2, 3, 4], [1, 2, 9, 9], [1, 2, 3, 8], [1, 2, 3, 8, 7])


def by(name, budget, capacity, **more):
  policy = PlacementPolicy(name, budget, chunk=BLOCK, **more)
  return simulate(STREAM, policy, capacity)


def test_expected_and_realised_by_hand():
  """A histogram that forgets nothing, planned anew for every request.

  Overlaps of 0, 2, 3 and 4 blocks. The first entry knows of none, and keeps no
  state: it expects to lose nothing, and the second and third request, which
  match it, lose 2 blocks and 1 (the second has left a state after 2). The third
  entry keeps a state after 2 blocks, knows an overlap of 2 and one of 3, so it
  expects to lose half a block; the last request matches it and loses 2.
  """
  report = by("optimal", 1, Capacity("states", 9), every=1, replan="periodic")
  assert [one.overlap for one in report.outcomes] == [0, 32, 48, 64]
  assert [one.restored for one in report.outcomes] == [0, 0, 32, 32]
  assert [one.positions for one in report.outcomes[:3]] == [(), (32,), ()]
  assert [one.expected for one in report.outcomes] == [None, 0, 0, 8]
  assert [one.lost for one in report.outcomes] == [0, 32, 16, 32]
  assert report.expected_lost_tokens == 8
  assert report.realised_lost_tokens == 80


@pytest.mark.parametrize(
  "capacity", [Capacity("states", 9), Capacity("sequences", 9)]
)
def test_who_knows_no_overlaps_expects_nothing(capacity):
  report = by("last", None, capacity)
  assert report.expected_lost_tokens is None
  assert report.realised_lost_tokens is None
  assert {one.expected for one in report.outcomes} == {None}


@pytest.mark.parametrize("kind", ["sequences", "states", "bytes"])
def test_expectations_come_true_where_nothing_changes(kind):
  """Documents with questions, room for all, and a state after each document."""
  stream = adversarial_streams()["cyclic_scan"]
  amounts = {"sequences": 40, "states": 2000, "bytes": 1 << 40}
  report = simulate(
    stream,
    PlacementPolicy("conditional", 2, chunk=stream.block),
    Capacity(kind, amounts[kind]),
    sizes=ModelSizes(state_bytes=1000, page_bytes=10),
    warmup_fraction=0.5,
  )
  assert len(report.outcomes) == report.requests
  assert sum(one.restored for one in report.outcomes) == report.tokens_saved
  assert sum(one.length for one in report.outcomes) == report.tokens_total
  assert report.realised_lost_tokens == 0
  assert report.expected_lost_tokens is not None
  assert 0 <= report.expected_lost_tokens < 0.05 * report.reusable_tokens
  if kind == "bytes":
    reasons = [one.reason for one in report.outcomes]
    assert {r: reasons.count(r) for r in {*reasons}} == report.reasons


def test_whole_blocks_of_those_with_an_expectation_count():
  outcomes = [
    Outcome(200, 150, 64, expected=10.0),
    Outcome(200, 70, 64, expected=1.0),
    Outcome(200, 150, 0),
  ]
  assert expected_and_realised(outcomes, chunk=64) == (11.0, 64)
  assert expected_and_realised(outcomes[2:], chunk=64) is None


@pytest.mark.parametrize(
  "capacity", [Capacity("states", 8), Capacity("bytes", 1 << 40)]
)
def test_who_weighs_all_states_expects_something_of_every_prompt(capacity):
  """With room for all, and much seen, little is expected, and little lost."""
  stream = adversarial_streams()["regime_change"]
  report = simulate(
    stream,
    PlacementPolicy("adaptive", chunk=stream.block),
    capacity,
    sizes=ModelSizes(state_bytes=1000, page_bytes=10),
    warmup_fraction=0.2,
  )
  told = [one.expected for one in report.outcomes]
  assert None not in told and min(told) >= 0
  assert report.expected_lost_tokens == pytest.approx(sum(told))
  lost = sum(one.lost for one in report.outcomes)
  assert report.realised_lost_tokens == lost
  assert report.expected_lost_tokens < 0.2 * report.reusable_tokens
