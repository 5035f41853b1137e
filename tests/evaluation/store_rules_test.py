import numpy as np
import pytest

from sparse_prefix_jax import preset
from sparse_prefix_jax.evaluation.model_sizes import ModelSizes
from sparse_prefix_jax.evaluation.store_rules import make_store, replay_store
from sparse_prefix_jax.models.cost import prefill_flops
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import Features, PlacementPolicy, Planner
from sparse_prefix_jax.workloads import Trace, TraceRequest, token_trace


def replay(trace, capacity, policy=None, eviction="lru", chunk=4):
  policy = policy or PlacementPolicy("block", chunk, chunk=chunk)
  store = make_store(
    Planner(policy, depths=32),
    ModelSizes(state_bytes=100, page_bytes=10),
    capacity_bytes=capacity,
    longest=trace.longest,
    eviction=eviction,
    state_share="undivided",
  )
  return replay_store(trace, store, warmup=0)


def repeated(length, times):
  return token_trace("same", [np.arange(length)] * times, [0] * times)


def test_resumes_before_the_last_token():
  """Of 12 tokens in chunks of 4, the third chunk has the last token."""
  tally = replay(repeated(12, 3), capacity=10_000)
  assert tally.reusable_tokens == 24 and tally.tokens_saved == 16
  assert tally.states == 9
  assert tally.peak == 3


def test_states_that_nobody_holds_are_not_counted():
  """The first request leaves one state; the plan then wishes for more."""
  trace = repeated(24, 2)

  class Growing(Planner):
    """Places one state, then one per chunk."""

    def positions(
      self, length: int, features: Features | None = None
    ) -> tuple[int, ...]:
      """The third chunk, and from the second request on all of them."""
      return (12,) if self.observations == 1 else (4, 8, 12, 16, 20, 24)

  store = make_store(
    Growing(PlacementPolicy("last", chunk=4), depths=32),
    ModelSizes(state_bytes=100, page_bytes=10),
    capacity_bytes=10_000,
    longest=24,
  )
  tally = replay_store(trace, store, warmup=0)
  # The second resumes at 12: it claims that state and adds 16, 20 and 24.
  assert tally.tokens_saved == 12
  assert tally.states == 1 + 4 and tally.peak == 4


def test_what_does_not_fit_is_computed_and_not_learned_from():
  """A sequence needs two states and three pages."""
  tally = replay(repeated(12, 3), capacity=229)
  assert tally.tokens_saved == tally.states == tally.peak == 0
  assert tally.bytes_peak == tally.reusable_tokens == 0
  assert tally.requests == 3


def test_pages_count_too():
  """Beside a running sequence there is room for one prompt, or for two."""
  a, b = np.arange(9), np.arange(100, 109)
  trace = token_trace("two", [a, b, a, b, b], [0] * 5)
  last = PlacementPolicy("last", chunk=4)
  one = 200 + 30 + 100  # two slots, three pages, a state
  assert replay(trace, one + 20, last).tokens_saved == 8
  assert replay(trace, one + 120, last).tokens_saved == 24


@pytest.mark.parametrize("eviction", ["fifo", "lru"])
def test_never_above_the_capacity(eviction):
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 2, rng.integers(1, 40)) for _ in range(100)]
  trace = token_trace("random", rows, [0] * 100)
  for capacity in (150, 700, 3000):
    tally = replay(trace, capacity, eviction=eviction)
    assert tally.bytes_peak is not None and tally.bytes_peak <= capacity
    assert tally.tokens_saved <= tally.reusable_tokens


def test_traces_of_hashed_blocks():
  request = TraceRequest(ids=np.array([3, 7], np.int32), length=35)
  trace = Trace("blocks", (request, request), block=16)
  tally = replay(trace, 1000, chunk=16)
  assert tally.tokens_saved == tally.reusable_tokens == 32


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="state_bytes must be a positive"):
    ModelSizes(state_bytes=0, page_bytes=1)


def test_a_bad_share_is_refused(unchecked_types):
  for share in (0, 1, -0.5, float("nan"), True, "half"):
    with pytest.raises(ValueError, match="state_share must be a number in"):
      store_of(share)


def store_of(share, capacity=2_000, longest=12):
  return make_store(
    Planner(PlacementPolicy("block", 4, chunk=4), depths=32),
    ModelSizes(state_bytes=100, page_bytes=10),
    capacity_bytes=capacity,
    longest=longest,
    state_share=share,
  )


def test_the_sizes_of_a_model_are_those_of_a_block_of_the_trace():
  config = preset("tiny")
  sizes = ModelSizes.of_model(config, block=16)
  assert sizes.state_bytes == state_bytes(config)
  assert sizes.page_bytes == page_bytes(config) // 4
  assert sizes.cost == prefill_flops(config)
  half = ModelSizes.of_model(preset("tiny", dtype="bfloat16"), block=16)
  assert half.page_bytes == sizes.page_bytes // 2


def test_why_requests_went_no_deeper_is_counted():
  rows = [np.arange(12), np.arange(12), np.arange(2), np.arange(50, 90)]
  trace = token_trace("four", [*rows, np.arange(12)], [0] * 5)
  store = store_of(0.6, capacity=1_000, longest=40)
  tally = replay_store(trace, store, warmup=0)
  assert tally.reasons == {
    "no_overlap": 2,  # the first, and the one of 40
    "last_token": 1,  # the second
    "within_chunk": 1,  # of two tokens
    "evicted": 1,  # by the one of 40
  }
  assert tally.lost_tokens == {
    "no_overlap": 0,
    "last_token": 4,
    "within_chunk": 2,
    "evicted": 12,
  }
  assert tally.refused_requests == 0
  assert sum(tally.reasons.values()) == tally.requests == 5
  stats = store.stats()
  assert tally.reasons == stats.reasons
  assert tally.evicted_states == stats.evicted_states
  assert (tally.hits, tally.tokens_saved) == (stats.hits, stats.saved_tokens)
  assert tally.reusable_tokens == stats.overlap_tokens


def test_refused_requests_have_no_reason():
  trace = repeated(12, 3)
  tally = replay_store(trace, store_of("undivided", capacity=229), warmup=1)
  assert (tally.requests, tally.refused_requests) == (2, 2)
  assert not tally.reasons and tally.state_share is None


def test_only_what_measured_requests_evict_is_counted():
  """Each prompt leaves three states, and there is room for four in all."""
  rows = [np.arange(100 * i, 100 * i + 12) for i in range(6)]
  trace = token_trace("new", rows, [0] * 6)
  counts = [
    replay_store(trace, store_of(0.4, capacity=1_000), warmup=w).evicted_states
    for w in (0, 3, 5)
  ]
  assert counts[0] > counts[1] > counts[2] > 0


def test_bytes_of_a_running_request_count_in_the_peak():
  """Two slots of its own and three pages, beside the states it leaves."""
  tally = replay(repeated(12, 1), capacity=10_000)
  assert tally.peak == 3
  assert tally.bytes_peak == 100 * (3 + 2) + 30


def test_the_share_follows_the_requests_and_its_moves_are_counted():
  """A state for every ten pages: less than what states begin with."""
  rows = [np.arange(40 * i, 40 * i + 40) for i in range(150)]
  trace = token_trace("documents", rows, [0] * 150)
  store = make_store(
    Planner(PlacementPolicy("last", chunk=4), depths=32),
    ModelSizes(state_bytes=100, page_bytes=100),
    capacity_bytes=20_000,
    longest=40,
  )
  tally = replay_store(trace, store, warmup=0)
  chooser = store.chooser
  assert tally.moves == chooser.moves > 0
  assert tally.moved_bytes == chooser.moved_bytes > 0
  assert tally.state_share == chooser.share < 0.4
  fixed = replay_store(trace, store_of(0.4, longest=40), warmup=0)
  assert (fixed.moves, fixed.moved_bytes, fixed.state_share) == (0, 0, 0.4)


def test_a_prompt_counts_although_its_answer_is_cut_short():
  """A third page would be needed for the fifth token after four."""
  first = TraceRequest(np.arange(5, dtype=np.int32), 5)
  asked = TraceRequest(np.arange(40, dtype=np.int32), 40, answer=35)
  trace = Trace("answers", (first, asked))
  store = make_store(
    Planner(PlacementPolicy("last", chunk=4), depths=32),
    ModelSizes(state_bytes=100, page_bytes=10),
    capacity_bytes=400,
    longest=40,
    state_share="undivided",
  )
  tally = replay_store(trace, store, warmup=0)
  stats = store.stats()
  assert (tally.requests, tally.refused_requests) == (2, 0)
  assert tally.tokens_saved == stats.saved_tokens == 4
  assert stats.running == 0
  store.audit()
