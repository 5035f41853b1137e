import numpy as np
import pytest

from sparse_prefix_jax.evaluation.store_rules import (
  Sizes,
  make_store,
  replay_store,
)
from sparse_prefix_jax.placement import Features, PlacementPolicy, Planner
from sparse_prefix_jax.workloads import Trace, TraceRequest, token_trace


def replay(trace, capacity, policy=None, eviction="lru", chunk=4):
  policy = policy or PlacementPolicy("block", chunk, chunk=chunk)
  store = make_store(
    Planner(policy, depths=32),
    Sizes(state_bytes=100, page_bytes=10),
    capacity_bytes=capacity,
    longest=trace.longest,
    eviction=eviction,
    state_share=None,
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
    Sizes(state_bytes=100, page_bytes=10),
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
  with pytest.raises(ValueError, match="state_bytes must be positive"):
    Sizes(state_bytes=0, page_bytes=1)
