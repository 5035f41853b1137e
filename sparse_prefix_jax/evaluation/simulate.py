"""Replay a request stream against a placement policy, without a model."""

from collections.abc import Sequence

from sparse_prefix_jax.evaluation.anchor_rules import replay_states, tree_paths
from sparse_prefix_jax.evaluation.capacity import Capacity
from sparse_prefix_jax.evaluation.paper_rules import (
  Lookup,
  look_up,
  replay_decisions,
  tally_decisions,
)
from sparse_prefix_jax.evaluation.report import Report, Tally
from sparse_prefix_jax.evaluation.store_rules import (
  Sizes,
  make_store,
  replay_store,
  store_planner,
)
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.workloads import Trace

EVICTIONS = ("fifo", "lru")
"""Which entry or state leaves first: the oldest, or the least recently used."""

# The paper's histogram: 64-token bins up to 16,384 tokens.
_LEAST_DEPTHS = 257


def default_eviction(capacity: Capacity) -> str:
  """FIFO for the paper's sequences, LRU for the rest."""
  return "fifo" if capacity.kind == "sequences" else "lru"


def _check(
  requests: Trace, policy: PlacementPolicy, eviction: str, fraction: float
) -> int:
  """How many requests warm the cache.

  Raises:
    ValueError: arguments of `simulate` that do not fit each other.
  """
  if eviction not in EVICTIONS:
    raise ValueError(
      f"eviction must be one of {', '.join(EVICTIONS)}, got {eviction!r}"
    )
  if not len(requests):
    raise ValueError("requests must not be empty")
  if requests.block not in (1, policy.chunk):
    raise ValueError(
      f"policy.chunk must be the block size of the trace, {requests.block}"
      f" tokens, got {policy.chunk}"
    )
  if not 0 <= fraction < 1:
    raise ValueError(f"warmup_fraction must be in [0, 1), got {fraction}")
  return int(fraction * len(requests))


def simulate(
  requests: Trace,
  policy: PlacementPolicy,
  capacity: Capacity,
  *,
  eviction: str | None = None,
  warmup_fraction: float = 0.0,
  sizes: Sizes | None = None,
  lookups: Sequence[Lookup] | None = None,
  progress: bool = False,
) -> Report:
  """Replays a stream and reports what the cache would have saved.

  The paper's dry run is `Capacity("sequences", N)` on an interleaved token file
  with a warm-up of 0.6.

  Args:
    requests: the stream, in the order in which it is served.
    policy: where every entry keeps states. Its chunk is the lattice; for a
      trace of hashed blocks it must be their size.
    capacity: what may be held: sequences (the paper's rules), states (K slots,
      all else free) or bytes (both count, as in serving).
    eviction: a name of `EVICTIONS`, None for `default_eviction`.
    warmup_fraction: share of the requests, rounded down, that fills the cache
      before anything is counted and before learned policies make a plan; 0 for
      none, and then they plan from the first request on.
    sizes: bytes of a state and of a page; needed for bytes only.
    lookups: of `look_up` for this stream and capacity (sequences only), when
      several policies are replayed.
    progress: show progress bars.

  Returns:
    The report.

  Raises:
    ValueError: an empty stream, an unknown eviction, a chunk that is not the
      trace's block size, a warm-up out of range, or bytes without sizes.

  >>> from sparse_prefix_jax.workloads import synthetic_stream
  >>> stream = synthetic_stream([1, 1, 2], requests=50, length=256)
  >>> report = simulate(
  ...   stream, PlacementPolicy("block", 64), Capacity("sequences", 8)
  ... )
  >>> report.requests, report.state_checkpoints_per_entry
  (50, 4.0)
  """
  eviction = default_eviction(capacity) if eviction is None else eviction
  warmup = _check(requests, policy, eviction, warmup_fraction)
  depths = max(_LEAST_DEPTHS, requests.longest // policy.chunk + 1)
  warming_up = warmup > 0
  planner = Planner(policy, depths=depths, warming_up=warming_up)
  if capacity.kind != "bytes":
    # The paper and the anchors know prompts only.
    requests = requests.prompts()
  if capacity.kind == "sequences":
    if lookups is None:
      lookups = look_up(
        requests, capacity.amount, eviction=eviction, progress=progress
      )
    decisions = replay_decisions(
      requests, planner, lookups, warmup, progress=progress
    )
    tally = tally_decisions(decisions, warmup)
  elif capacity.kind == "states":
    tally = replay_states(
      requests,
      planner,
      tree_paths(requests, policy.chunk),
      slots=capacity.amount,
      warmup=warmup,
      eviction=eviction,
      progress=progress,
    )
  else:
    if sizes is None:
      raise ValueError("a capacity in bytes needs sizes of a state and a page")
    store = make_store(
      store_planner(policy, sizes, depths=depths, warming_up=warming_up),
      sizes,
      capacity_bytes=capacity.amount,
      longest=requests.longest,
      eviction=eviction,
    )
    tally = replay_store(requests, store, warmup=warmup, progress=progress)
  return _report(requests, policy, capacity, eviction, warmup, tally)


def _report(
  requests: Trace,
  policy: PlacementPolicy,
  capacity: Capacity,
  eviction: str,
  warmup: int,
  tally: Tally,
) -> Report:
  """The record of a replay."""
  return Report(
    trace=requests.name,
    placement=policy.name,
    budget=policy.budget,
    eviction=eviction,
    capacity=str(capacity),
    warmup_requests=warmup,
    requests=tally.requests,
    tokens_total=tally.tokens_total,
    tokens_saved=tally.tokens_saved,
    reusable_tokens=tally.reusable_tokens,
    hits=tally.hits,
    state_checkpoints_per_entry=tally.states / tally.requests,
    state_checkpoints_peak=tally.peak,
    bytes_peak=tally.bytes_peak,
  )
