"""Replay a request stream against a placement policy, without a model."""

from collections.abc import Sequence
from typing import NamedTuple

from sparse_prefix_jax.cache.index import (
  Eviction,
  eviction_for,
  eviction_name,
  placement_for,
)
from sparse_prefix_jax.evaluation.anchor_rules import (
  replay_adaptive,
  replay_states,
  tree_paths,
  wanted_depths,
)
from sparse_prefix_jax.evaluation.capacity import Capacity, check_eviction
from sparse_prefix_jax.evaluation.model_sizes import ModelSizes
from sparse_prefix_jax.evaluation.outcomes import expected_and_realised
from sparse_prefix_jax.evaluation.paper_rules import (
  Lookup,
  look_up,
  replay_decisions,
  tally_decisions,
)
from sparse_prefix_jax.evaluation.report import SimulationReport, Tally
from sparse_prefix_jax.evaluation.store_rules import (
  make_store,
  replay_store,
  store_planner,
)
from sparse_prefix_jax.evaluation.stretches import passages_of
from sparse_prefix_jax.kinds import brief, check_class, check_flag
from sparse_prefix_jax.placement import SHARED, PlacementPolicy, Planner
from sparse_prefix_jax.placement.bounds import (
  intervals_of,
  upper_bound,
  upper_bound_of_bytes,
)
from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.whole_numbers import as_float
from sparse_prefix_jax.workloads import Trace

# The paper's histogram: 64-token bins up to 16,384 tokens.
_LEAST_DEPTHS = 257


def default_eviction(capacity: Capacity, placement: str = "last") -> str:
  """Returns the rule by which states are evicted unless another is named.

  Args:
    capacity: First in, first out for the paper's sequences, the least recently
      used first for the rest.
    placement: One of those that weigh states evicts by its own index.

  >>> default_eviction(Capacity("states", 9), "adaptive")
  'index'
  """
  if placement in SHARED:
    return "index"
  return "fifo" if capacity.kind == "sequences" else "lru"


def default_placement(
  capacity: Capacity, eviction: Eviction | None = None
) -> str:
  """Returns the placement unless another is named.

  Args:
    capacity: It is `last` for the paper's sequences, which share nothing.
    eviction: For states and bytes it is `adaptive`, or `last` where a rule is
      named that goes with others.

  >>> default_placement(Capacity("bytes", 9))
  'adaptive'
  """
  return "last" if capacity.kind == "sequences" else placement_for(eviction)


def _check(
  requests: Trace, policy: PlacementPolicy, capacity: Capacity
) -> None:
  """Raises ValueError where arguments of `simulate` do not fit each other."""
  if not isinstance(capacity, Capacity):
    raise ValueError(
      f"capacity must be a Capacity, of parse_capacity, got {brief(capacity)}"
    )
  if not isinstance(requests, Trace):
    raise ValueError(
      f"requests must be a Trace of workloads, got {type(requests).__name__}"
    )
  if not isinstance(policy, PlacementPolicy):
    raise ValueError(f"policy must be a PlacementPolicy, got {brief(policy)}")
  if not len(requests):
    raise ValueError("requests must not be empty")
  if requests.block not in (1, policy.chunk):
    raise ValueError(
      f"policy.chunk must be the block size of the trace, {requests.block}"
      f" tokens, got {policy.chunk}"
    )


def _check_rule(policy: PlacementPolicy, eviction: Eviction, kind: str) -> None:
  """Raises ValueError for an eviction that there is not, or not for these."""
  shared = policy.name in SHARED
  if shared and kind == "sequences":
    raise ValueError(
      f"placement {policy.name} is for a capacity of states or bytes, got"
      f" {kind}"
    )
  if not shared:
    check_eviction(kind, eviction)
  if shared or kind == "bytes":
    eviction_for(policy.name, eviction)


def _warmup(requests: Trace, fraction: float) -> int:
  """How many requests warm the cache; ValueError for a share out of range."""
  if not 0 <= as_float(fraction) < 1:
    raise ValueError(
      f"warmup_fraction must be a number in [0, 1), got {brief(fraction)}"
    )
  return int(float(fraction) * len(requests))


def simulate(
  requests: Trace,
  policy: PlacementPolicy,
  capacity: Capacity,
  *,
  eviction: Eviction | None = None,
  warmup_fraction: float = 0.0,
  sizes: ModelSizes | None = None,
  state_share: float | str | None = None,
  lookups: Sequence[Lookup] | None = None,
  progress: bool = False,
) -> SimulationReport:
  """Replays a stream and reports what the cache would have saved.

  The paper's dry run is `Capacity("sequences", N)` on an interleaved token file
  with a warm-up of 0.6.

  Args:
    requests: The stream, in the order in which it is served.
    policy: Where every entry keeps states. Its chunk is the lattice; for a
      trace of hashed blocks it must be their size.
    capacity: What may be held: sequences (the paper's rules), states (K slots,
      all else free) or bytes (both count, as in serving).
    eviction: A name of `EVICTIONS`, None for `default_eviction`. Others than
      `adaptive`, which brings index, have fifo and lru; for bytes also the
      other names, and a class of your own.
    warmup_fraction: Share of the requests, rounded down, that fills the cache
      before anything is counted and before learned policies make a plan; 0 for
      none, and then they plan from the first request on.
    sizes: Bytes of a state and of a page, and what prefill costs; needed for
      bytes only.
    state_share: How a capacity in bytes is divided: the share of states; None
      follows the requests, as `PrefixCache` does; "undivided" for not at all.
    lookups: What `look_up` gave for this stream and capacity (sequences only),
      when several policies are replayed.
    progress: Show progress bars.

  Returns:
    The report.

  Raises:
    ValueError: If the stream is empty, the eviction unknown or not one of the
      placement, the chunk not the trace's block size, the warm-up or the share
      out of range, if there are no sizes for bytes, or if no measured request
      fits the capacity.

  >>> from sparse_prefix_jax.workloads import synthetic_stream
  >>> stream = synthetic_stream([1, 1, 2], requests=50, length=256)
  >>> report = simulate(
  ...   stream, PlacementPolicy("block", 64), Capacity("sequences", 8)
  ... )
  >>> report.requests, report.state_checkpoints_per_entry
  (50, 4.0)
  """
  _check(requests, policy, capacity)
  check_flag("progress", progress)
  if eviction is None:
    eviction = default_eviction(capacity, policy.name)
  _check_rule(policy, eviction, capacity.kind)
  warmup = _warmup(requests, warmup_fraction)
  if capacity.kind == "bytes":
    if sizes is not None:
      check_class("sizes", sizes, ModelSizes, "such as `ModelSizes.of_model`")
    run = _Run(requests, policy, capacity, eviction, warmup, progress)
    return _of_bytes(run, sizes, state_share)
  # The paper and the anchors know prompts only.
  prompts = requests.prompts()
  run = _Run(prompts, policy, capacity, eviction, warmup, progress)
  return _of_states(run) if run.kind == "states" else _of_entries(run, lookups)


class _Run(NamedTuple):
  """What is replayed, checked, whatever the capacity counts."""

  requests: Trace
  policy: PlacementPolicy
  capacity: Capacity
  eviction: Eviction
  warmup: int
  progress: bool

  @property
  def kind(self) -> str:
    """What the capacity counts."""
    return self.capacity.kind

  @property
  def depths(self) -> int:
    """Depth bins of a planner."""
    return max(_LEAST_DEPTHS, self.requests.longest // self.policy.chunk + 1)

  def planner(self) -> Planner:
    """A planner by the paper's rules, and the anchors'."""
    warming_up = self.warmup > 0
    return Planner(self.policy, depths=self.depths, warming_up=warming_up)


def _of_bytes(
  run: _Run, sizes: ModelSizes | None, state_share: float | str | None
) -> SimulationReport:
  """Replays a stream in the store of a server."""
  policy = run.policy
  if sizes is None:
    raise ValueError("a capacity in bytes needs sizes of a state and a page")
  store = make_store(
    store_planner(policy, sizes, depths=run.depths, warming_up=run.warmup > 0),
    sizes,
    capacity_bytes=run.capacity.amount,
    longest=run.requests.longest,
    eviction=run.eviction,
    state_share=state_share,
  )
  tally = replay_store(
    run.requests, store, warmup=run.warmup, progress=run.progress
  )
  if tally.refused_requests == tally.requests:
    raise ValueError(
      f"capacity {run.capacity} is too small for every measured request: two "
      f"states take {2 * sizes.state_bytes} bytes, and each block of "
      f"{policy.chunk} tokens takes {sizes.page_bytes} more"
    )
  return _report(run, tally, sizes, bound=_bound_of_bytes(run, tally, sizes))


def _bound_of_bytes(run: _Run, tally: Tally, sizes: ModelSizes) -> int:
  """What nobody saves more of those who were served, in tokens."""
  chunk, refused = run.policy.chunk, {*tally.refused}
  served = [i for i in range(len(run.requests)) if i not in refused]
  asked = [run.requests.requests[i] for i in served]
  bound = upper_bound_of_bytes(
    passages_of(run.requests, asked, chunk),
    capacity=run.capacity.amount,
    state_bytes=sizes.state_bytes,
    page_bytes=sizes.page_bytes,
    warmup=sum(i < run.warmup for i in served),
  )
  return bound.blocks * chunk


def _of_states(run: _Run) -> SimulationReport:
  """Replays a stream under the rules of the anchors, and bounds it."""
  chunk, slots = run.policy.chunk, run.capacity.amount
  paths = tree_paths(run.requests, chunk, progress=run.progress)
  common = {
    "chunk": chunk,
    "slots": slots,
    "warmup": run.warmup,
    "progress": run.progress,
  }
  if run.policy.name in SHARED:
    tally = replay_adaptive(
      run.requests, Adaptive(block=chunk), paths, **common
    )
  else:
    wanted = wanted_depths(
      run.requests, run.planner(), paths, warmup=run.warmup
    )
    tally = replay_states(
      run.requests,
      wanted,
      paths,
      eviction=eviction_name(run.eviction),
      **common,
    )
  bound = upper_bound(intervals_of(paths, warmup=run.warmup), slots)
  return _report(run, tally, bound=bound.blocks * chunk)


def _of_entries(
  run: _Run, lookups: Sequence[Lookup] | None
) -> SimulationReport:
  """Replays a stream under the rules of the paper."""
  if lookups is None:
    lookups = look_up(
      run.requests,
      run.capacity.amount,
      eviction=eviction_name(run.eviction),
      progress=run.progress,
    )
  decisions = replay_decisions(
    run.requests, run.planner(), lookups, run.warmup, progress=run.progress
  )
  return _report(run, tally_decisions(decisions, run.warmup))


def _report(
  run: _Run,
  tally: Tally,
  sizes: ModelSizes | None = None,
  bound: int | None = None,
) -> SimulationReport:
  """The record of a replay."""
  lost = expected_and_realised(tally.outcomes, run.policy.chunk)
  expected, realised = lost or (None, None)
  return SimulationReport(
    trace=run.requests.name,
    placement=run.policy.name,
    budget=run.policy.budget,
    eviction=eviction_name(run.eviction),
    capacity=str(run.capacity),
    warmup_requests=run.warmup,
    requests=tally.requests,
    tokens_total=tally.tokens_total,
    tokens_saved=tally.tokens_saved,
    reusable_tokens=tally.reusable_tokens,
    hits=tally.hits,
    overlapping_requests=tally.overlapping_requests,
    state_checkpoints_per_entry=tally.states / tally.requests,
    state_checkpoints_peak=tally.peak,
    bytes_peak=tally.bytes_peak,
    state_bytes=sizes and sizes.state_bytes,
    page_bytes=sizes and sizes.page_bytes,
    model=sizes and sizes.model,
    interleave_seed=run.requests.interleave_seed,
    evicted_states=tally.evicted_states,
    refused_requests=tally.refused_requests,
    moves=tally.moves,
    moved_bytes=tally.moved_bytes,
    state_share=tally.state_share,
    reasons=sizes and dict(sorted(tally.reasons.items())),
    lost_tokens=sizes and dict(sorted(tally.lost_tokens.items())),
    upper_bound_tokens=bound,
    expected_lost_tokens=expected,
    realised_lost_tokens=realised,
    outcomes=tuple(tally.outcomes),
  )
