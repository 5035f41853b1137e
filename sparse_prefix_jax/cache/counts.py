"""What requests found in a store, counted over its life."""

import collections
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from sparse_prefix_jax.cache.divided_capacity import ShareFollower
from sparse_prefix_jax.cache.index import PrefixIndex, Reason
from sparse_prefix_jax.cache.recent import Recent

if TYPE_CHECKING:
  from sparse_prefix_jax.cache.running import Running


class Counts:
  """Sums over all requests that were opened.

  Attributes:
    requests: How many.
    hits: Those that resumed from a state.
    prompt_tokens: Their tokens.
    overlap_tokens: Those that equalled a known prefix.
    saved_tokens: Those that a restored state made unnecessary to compute.
    captured_states: States captured for them.
    reasons: Why each went no deeper.
    lost_tokens: Tokens known and computed all the same, by that reason.
    expected_lost: What of whole chunks the placement expected to be lost; None
      until it expects anything.
    realised_lost: What of them was lost, by those of whom it expected anything.
  """

  def __init__(self) -> None:
    """Starts at zero."""
    self.requests = self.hits = self.prompt_tokens = 0
    self.overlap_tokens = self.saved_tokens = self.captured_states = 0
    self.reasons: collections.Counter[Reason] = collections.Counter()
    self.lost_tokens: collections.Counter[Reason] = collections.Counter()
    self.expected_lost: float | None = None
    self.realised_lost: int | None = None

  def open(self, running: "Running", chunk: int) -> None:
    """Counts a request that was opened and has computed nothing yet.

    Args:
      running: The sequence.
      chunk: Tokens of a chunk, c.
    """
    match = running.match
    self.requests += 1
    self.hits += running.computed > 0
    self.prompt_tokens += running.prompt_length
    self.overlap_tokens += match.overlap_tokens
    self.saved_tokens += running.computed
    self.captured_states += len(running.captures)
    self.reasons[match.reason] += 1
    lost = match.overlap_tokens - running.computed
    self.lost_tokens[match.reason] += max(lost, 0)
    if running.expected_lost is not None:
      whole = match.overlap_blocks * chunk - running.computed
      self.expected_lost = (self.expected_lost or 0.0) + running.expected_lost
      self.realised_lost = (self.realised_lost or 0) + max(whole, 0)


class StoreStats(NamedTuple):
  """What a store holds now, and what requests found in it so far.

  Attributes:
    capacity_bytes: What may be held.
    held_bytes: What is held: states and pages, stored or in use.
    held_slots: State slots of those.
    held_pages: Pages of those.
    stored_states: State checkpoints that later requests may resume from, those
      of running sequences too.
    entries: Prompts that are remembered, with or without states.
    states_per_entry: States that an entry asked for and that are stored, on
      average over the entries.
    remembered_bytes: Host memory of the prompts that are remembered; bounded.
    learned_bytes: Host memory of what `adaptive` has learned of prefixes, in
      the cache and beside it to follow shares; bounded but for 14.0 MiB each,
      room for a quarter more rows, and at most 288 KiB of cues for each of up
      to 64 tenants.
    running: Sequences that run.
    requests: Prompts that were begun so far, also if their call then failed.
    hits: Those that resumed from a state.
    prompt_tokens: Their tokens.
    overlap_tokens: Those that equalled a known prefix: what one state per token
      would have saved.
    saved_tokens: Those that were not computed.
    captured_states: States captured for them.
    evicted_states: States that were dropped to make room.
    forgotten_entries: Entries that were dropped to bound the host memory.
    state_share: Share of the capacity that states have now, where it follows
      the requests; None where it is fixed.
    moves: How often that share changed.
    moved_bytes: Bytes copied for that; while it lasts one layer of the pools
      is held twice, outside of the capacity.
    reasons: How many requests went no deeper, for each reason.
    lost_tokens: Tokens that were known and computed all the same, for each of
      those reasons.
    expected_lost_tokens: What the placement expected requests to lose of whole
      chunks that are known: as the entries ended that they matched, or, if it
      weighs all states (`adaptive`), as a sequence ended last. None, like the
      next, where it has no statistics of overlaps.
    realised_lost_tokens: What those requests did lose of them.
    recent: The last requests, how many and what they saved, for a bound of
      what they could have saved.
  """

  capacity_bytes: int
  held_bytes: int
  held_slots: int
  held_pages: int
  stored_states: int
  entries: int
  states_per_entry: float
  remembered_bytes: int
  learned_bytes: int
  running: int
  requests: int
  hits: int
  prompt_tokens: int
  overlap_tokens: int
  saved_tokens: int
  captured_states: int
  evicted_states: int
  forgotten_entries: int
  state_share: float | None
  moves: int
  moved_bytes: int
  reasons: Mapping[str, int]
  lost_tokens: Mapping[str, int]
  expected_lost_tokens: float | None
  realised_lost_tokens: int | None
  recent: Recent

  @property
  def upper_bound_tokens(self) -> int:
    """What no policy saves more than of the last 1,000 requests.

    Since a flush, if there were fewer. It is computed when it is first asked
    for, in about a second, or a few where prompts share very many prefixes.
    """
    return self.recent.upper_bound_tokens

  @property
  def percent_of_upper_bound(self) -> float:
    """What they saved, in percent of that; 100 where there was nothing."""
    bound = self.upper_bound_tokens
    return 100 * self.recent.saved_tokens / bound if bound else 100.0


def describe_store(
  index: PrefixIndex,
  counts: Counts,
  running: int,
  recent: Recent,
  chooser: ShareFollower | None = None,
  *,
  learned_bytes: int = 0,
) -> StoreStats:
  """The figures of a store, each under its one name.

  Args:
    index: What is held.
    counts: What requests found.
    running: How many sequences run.
    recent: The last requests.
    chooser: Of its share, if that is not fixed.
    learned_bytes: Host memory of what was learned of states' worth, and cues.
  """
  held = index.stats
  claimed = sum(len(entry.states) for entry in index.entries)
  return StoreStats(
    capacity_bytes=index.budget.capacity_bytes,
    held_bytes=held.held_bytes,
    held_slots=held.held_slots,
    held_pages=held.held_pages,
    stored_states=held.states,
    entries=held.entries,
    states_per_entry=claimed / held.entries if held.entries else 0.0,
    remembered_bytes=held.remembered_bytes,
    learned_bytes=learned_bytes,
    running=running,
    requests=counts.requests,
    hits=counts.hits,
    prompt_tokens=counts.prompt_tokens,
    overlap_tokens=counts.overlap_tokens,
    saved_tokens=counts.saved_tokens,
    captured_states=counts.captured_states,
    evicted_states=held.evictions,
    forgotten_entries=held.forgotten,
    state_share=chooser.share if chooser else None,
    moves=chooser.moves if chooser else 0,
    moved_bytes=chooser.moved_bytes if chooser else 0,
    reasons={str(r): n for r, n in sorted(counts.reasons.items())},
    lost_tokens={str(r): n for r, n in sorted(counts.lost_tokens.items())},
    expected_lost_tokens=counts.expected_lost,
    realised_lost_tokens=counts.realised_lost,
    recent=recent,
  )
