import dataclasses

import numpy as np
import pytest

from sparse_prefix_jax import evaluation, preset
from sparse_prefix_jax.cache import index
from sparse_prefix_jax.evaluation import (
  Capacity,
  ModelSizes,
  default_placement,
  look_up,
  parse_capacity,
  simulate,
)
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.placement.policy import LEARNED
from sparse_prefix_jax.workloads import (
  Trace,
  TraceRequest,
  interleave,
  synthetic_stream,
  token_trace,
)

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

STREAM = synthetic_stream(
  [1, 0, 2, 0, 4], requests=120, length=300, groups=3, seed=5
)
POLICIES = [
  PlacementPolicy("no_cache"),
  PlacementPolicy("last"),
  PlacementPolicy("sqrt"),
  PlacementPolicy("block", 128),
  PlacementPolicy("balanced", 2),
  PlacementPolicy("dyadic", 64),
  PlacementPolicy("dp", 2),
  PlacementPolicy("optimal", 2),
  PlacementPolicy("conditional", 1.5),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
@pytest.mark.parametrize("capacity", ["sequences:9", "states:9", "bytes:30KB"])
def test_every_policy_and_capacity(policy, capacity):
  report = simulate(
    STREAM,
    policy,
    parse_capacity(capacity),
    warmup_fraction=0.25,
    sizes=ModelSizes(state_bytes=500, page_bytes=50),
  )
  assert (report.warmup_requests, report.requests) == (30, 90)
  assert report.tokens_total == 90 * 300
  assert 0 <= report.tokens_saved <= report.reusable_tokens
  assert (report.tokens_saved == 0) == (policy.name == "no_cache")
  assert report.placement == policy.name
  assert report.hits <= report.overlapping_requests <= report.requests
  assert (report.hits == 0) == (report.tokens_saved == 0)
  content = report.to_json()
  untold = {n for n in content["meanings"] if content[n] is None}
  lost = {"expected_lost_tokens", "realised_lost_tokens"}
  assert untold == (set() if policy.name in LEARNED else lost)
  assert content["saved_fraction"] == report.tokens_saved / report.tokens_total


def test_learned_policies_beat_balanced_where_depths_are_few():
  def saved(name):
    report = simulate(
      STREAM,
      PlacementPolicy(name, 1),
      Capacity("sequences", 60),
      warmup_fraction=0.5,
    )
    return report.tokens_saved

  assert saved("dp") == saved("optimal") > saved("balanced")


def conversations(requests=240, groups=6):
  """Prompts of very different lengths, each with a last turn of its own."""
  rng = np.random.default_rng(0)
  documents = [rng.integers(0, 512, 64 * 4 * (g + 1)) for g in range(groups)]
  owners = rng.integers(0, groups, requests)
  rows = [
    np.append(documents[g], rng.integers(512, 1024, rng.integers(9, 90)))
    for g in owners
  ]
  return token_trace("turns", rows, owners.tolist())


@pytest.mark.parametrize("capacity", ["sequences:12", "states:60", "bytes:1MB"])
def test_conditional_beats_one_histogram_where_lengths_differ(capacity):
  def replay(name):
    return simulate(
      conversations(),
      PlacementPolicy(name, 1),
      parse_capacity(capacity),
      warmup_fraction=0.5,
      sizes=ModelSizes(state_bytes=500, page_bytes=50),
    )

  ours, pooled = replay("conditional"), replay("optimal")
  assert ours.state_checkpoints_per_entry <= 1.1
  assert ours.tokens_saved > 1.3 * pooled.tokens_saved
  assert ours.tokens_saved > 0.85 * ours.reusable_tokens


@pytest.mark.parametrize("budget", [0.25, 0.5])
def test_a_fraction_of_a_state_is_an_average(budget):
  report = simulate(
    conversations(),
    PlacementPolicy("conditional", budget),
    Capacity("sequences", 12),
    warmup_fraction=0.5,
  )
  kept = report.state_checkpoints_per_entry
  assert kept == pytest.approx(budget, rel=0.25)
  assert report.tokens_saved > 0 and report.budget == budget


def test_shared_lookups_change_nothing():
  capacity, policy = Capacity("sequences", 9), PlacementPolicy("block", 64)
  found = look_up(STREAM, 9)
  assert simulate(STREAM, policy, capacity, lookups=found) == simulate(
    STREAM, policy, capacity
  )


def test_default_evictions():
  policy = PlacementPolicy("last")
  sizes = ModelSizes(1, 1)
  names = [
    simulate(STREAM, policy, Capacity(kind, 99), sizes=sizes).eviction
    for kind in ("sequences", "states", "bytes")
  ]
  assert names == ["fifo", "lru", "lru"]


def test_adaptive_is_the_default_and_evicts_by_itself():
  policy = PlacementPolicy("adaptive")
  report = simulate(STREAM, policy, Capacity("states", 9), warmup_fraction=0.25)
  assert (report.placement, report.eviction) == ("adaptive", "index")
  assert report.requests == 90 and report.state_checkpoints_peak == 9
  assert 0 < report.tokens_saved <= report.upper_bound_tokens
  last = simulate(
    STREAM, PlacementPolicy("last"), Capacity("states", 9), warmup_fraction=0.25
  )
  assert report.upper_bound_tokens == last.upper_bound_tokens
  assert report.tokens_saved > last.tokens_saved
  chosen = {
    (kind, eviction): default_placement(Capacity(kind, 9), eviction)
    for kind in ("sequences", "states", "bytes")
    for eviction in (None, "index", "lru")
  }
  adaptive = [asked for asked, name in chosen.items() if name == "adaptive"]
  assert adaptive == [
    (kind, eviction)
    for kind in ("states", "bytes")
    for eviction in (None, "index")
  ]
  assert {*chosen.values()} == {"adaptive", "last"}


@pytest.mark.parametrize("placement", ["adaptive", "last", "no_cache"])
@pytest.mark.parametrize("share", ["undivided", None])
def test_no_policy_of_bytes_saves_more_than_the_bound(placement, share):
  policy, sizes = PlacementPolicy(placement), ModelSizes(300, 10)
  for capacity in (2_500, 6_000, 10**6):
    report = simulate(
      STREAM,
      policy,
      Capacity("bytes", capacity),
      sizes=sizes,
      state_share=share,
      warmup_fraction=0.25,
    )
    assert report.tokens_saved <= report.upper_bound_tokens
    if placement != "no_cache":  # Which remembers nothing.
      assert report.upper_bound_tokens <= report.reusable_tokens
  assert (report.percent_of_upper_bound > 0) == (placement != "no_cache")


def test_adaptive_is_refused_where_it_cannot_be():
  policy, sizes = PlacementPolicy("adaptive"), ModelSizes(1, 1)
  with pytest.raises(ValueError, match="states or bytes, got sequences"):
    simulate(STREAM, policy, Capacity("sequences", 9))
  for kind in ("states", "bytes"):
    capacity = Capacity(kind, 9)
    with pytest.raises(ValueError, match="by its index, got eviction 'lru'"):
      simulate(STREAM, policy, capacity, eviction="lru", sizes=sizes)
  last, capacity = PlacementPolicy("last"), Capacity("bytes", 999)
  with pytest.raises(ValueError, match="index is that of placement adaptive"):
    simulate(STREAM, last, capacity, eviction="index", sizes=sizes)
  with pytest.raises(ValueError, match="must be one of fifo, lru, got 'index'"):
    simulate(
      STREAM, PlacementPolicy("last"), Capacity("states", 9), eviction="index"
    )


def test_evictions_are_those_of_the_index():
  assert evaluation.EVICTIONS is index.EVICTIONS


def test_a_new_eviction_is_one_of_the_store_alone(monkeypatch):
  monkeypatch.setitem(index.EVICTIONS, "newest", index.EVICTIONS["fifo"])
  policy, sizes = PlacementPolicy("last"), ModelSizes(1, 1)
  simulate(
    STREAM, policy, Capacity("bytes", 999), eviction="newest", sizes=sizes
  )
  for kind in ("sequences", "states"):
    with pytest.raises(ValueError, match="must be one of fifo, lru, got 'newe"):
      simulate(STREAM, policy, Capacity(kind, 3), eviction="newest")
  with pytest.raises(ValueError, match="must be one of fifo, lru, got 'newe"):
    look_up(STREAM, 3, eviction="newest")


def test_a_share_of_states_is_passed_to_the_store():
  def shares(state_share):
    report = simulate(
      STREAM,
      PlacementPolicy("block", 64),
      parse_capacity("bytes:30KB"),
      sizes=ModelSizes(state_bytes=500, page_bytes=50),
      state_share=state_share,
    )
    return report.state_share, report.tokens_saved

  assert shares(0.5)[0] == 0.5 and shares("undivided")[0] is None
  assert shares(0.5)[1] != shares(0.1)[1]
  with pytest.raises(ValueError, match="state_share must be a number in"):
    shares("half")


def test_bad_input_is_refused():
  policy, capacity = PlacementPolicy("last"), Capacity("sequences", 3)
  with pytest.raises(
    ValueError, match="must be one of fifo, lru, got 'marconi'; bytes have more"
  ):
    simulate(STREAM, policy, capacity, eviction="marconi")
  with pytest.raises(ValueError, match="requests must not be empty"):
    simulate(Trace("none", ()), policy, capacity)
  for fraction in (-0.1, 1.0, float("nan")):
    with pytest.raises(ValueError, match="warmup_fraction must be a number in"):
      simulate(STREAM, policy, capacity, warmup_fraction=fraction)
  with pytest.raises(ValueError, match="needs sizes of a state and a page"):
    simulate(STREAM, policy, Capacity("bytes", 3))
  blocks = Trace(
    "b", (TraceRequest(ids=np.array([1], np.int32), length=16),), block=16
  )
  with pytest.raises(ValueError, match="must be the block size of the trace"):
    simulate(blocks, policy, capacity)
  fitting = dataclasses.replace(policy, chunk=16)
  assert simulate(blocks, fitting, capacity).requests == 1


def test_a_capacity_that_no_request_fits_is_refused():
  """Nothing saved would read as a placement that saves nothing."""
  with pytest.raises(ValueError, match="bytes:999 is too small for every"):
    simulate(
      STREAM,
      PlacementPolicy("last"),
      Capacity("bytes", 999),
      sizes=ModelSizes(state_bytes=500, page_bytes=50),
    )


def test_a_report_tells_what_made_it():
  """The model whose bytes count, and the seed of the order."""
  report = simulate(
    interleave(STREAM, seed=7),
    PlacementPolicy("last"),
    Capacity("bytes", 2**26),
    sizes=ModelSizes.of_model(preset("tiny"), 64, "tiny"),
  )
  assert (report.model, report.interleave_seed) == ("tiny in float32", 7)
  assert (
    simulate(
      STREAM, PlacementPolicy("last"), Capacity("states", 4)
    ).interleave_seed
    is None
  )
