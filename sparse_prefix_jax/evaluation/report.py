"""What a replay found, as a frozen record that goes to JSON."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_prefix_jax.evaluation.meanings import meanings_of
from sparse_prefix_jax.evaluation.outcomes import Outcome
from sparse_prefix_jax.writable import write_json_file


@dataclass(frozen=True)
class SimulationReport:
  """Result of replaying a request stream against one policy.

  What a figure means may depend on the kind of capacity; `meanings` says it for
  this report. The names of six figures are those of the files that `simulate`
  has always written; every other figure has the name that `PrefixCache.stats()`
  gives it, where both mean the same, and another where they do not:

      tokens_total      is `prompt_tokens` of `stats()`
      tokens_saved      is `saved_tokens`
      reusable_tokens   is `overlap_tokens`
      requests, hits, evicted_states, reasons, lost_tokens     are those of
          `stats()`, and so are expected_lost_tokens and realised_lost_tokens
      state_share, moves, moved_bytes     are, where the share is not fixed
      overlapping_requests     is not in it: the paper calls these its hits
      state_checkpoints_per_entry     is a mean over requests as they end, while
          `states_per_entry` is one over the entries that are stored now
      state_checkpoints_peak     is `stored_states` at its highest between two
          requests; within one it may be higher
      bytes_peak     is `held_bytes` at its highest as a request ends

  `stats()` counts the whole life of a cache; this report leaves the warm-up
  out, but of the two peaks and of `state_share`.

  Attributes:
    trace: Name of the stream.
    placement: Name of the placement policy.
    budget: Its budget, None where it has none.
    eviction: Which entry or state leaves first.
    capacity: The capacity as it stands on the command line.
    interleave_seed: Seed of the order of the requests, None for their own.
    warmup_requests: Requests that only filled the cache.
    requests: Measured requests.
    tokens_total: Their prompt tokens.
    tokens_saved: Tokens that a restored state made unnecessary to compute.
    reusable_tokens: Tokens that equalled a known prefix, which is what one
      state per token would have saved.
    hits: Requests that resumed from a state.
    overlapping_requests: Requests with at least one reusable token.
    state_checkpoints_per_entry: States kept per request, on average.
    state_checkpoints_peak: States stored at one time, at most; when that is
      looked at, `meanings` says for the kind of capacity.
    bytes_peak: Bytes held as a request ends, at most. This and those that
      follow, up to `lost_tokens`, are None unless the capacity is in bytes.
    state_bytes: Bytes of one state checkpoint.
    page_bytes: Bytes of the keys and values of one lattice block.
    model: Whose bytes these are, and in which type; None where it is not said.
    evicted_states: States that were dropped to make room.
    refused_requests: Requests that do not fit where all else is evicted.
    moves: How often the share of states changed.
    moved_bytes: What a server copies for that.
    state_share: Share of the capacity that states have in the end; None also
      where the capacity is undivided.
    reasons: How many requests went no deeper, for each reason.
    lost_tokens: Tokens known and computed all the same, for each of them.
    upper_bound_tokens: What no policy can save more than, knowing the future;
      None for a capacity of sequences, by rules of which there is no bound.
    expected_lost_tokens: What the placement expected prompts to compute again
      of what is known: as it placed the entries that they matched, and of
      `adaptive` before each of them. None, like the next, where it has no
      statistics of overlaps.
    realised_lost_tokens: What those prompts did compute again of it.
    outcomes: What became of each measured request, in order; not in the JSON.
  """

  trace: str
  placement: str
  budget: int | float | None
  eviction: str
  capacity: str
  warmup_requests: int
  requests: int
  tokens_total: int
  tokens_saved: int
  reusable_tokens: int
  hits: int
  overlapping_requests: int
  state_checkpoints_per_entry: float
  state_checkpoints_peak: int
  bytes_peak: int | None = None
  state_bytes: int | None = None
  page_bytes: int | None = None
  model: str | None = None
  evicted_states: int | None = None
  refused_requests: int | None = None
  moves: int | None = None
  moved_bytes: int | None = None
  state_share: float | None = None
  reasons: Mapping[str, int] | None = None
  lost_tokens: Mapping[str, int] | None = None
  interleave_seed: int | None = None
  upper_bound_tokens: int | None = None
  expected_lost_tokens: float | None = None
  realised_lost_tokens: int | None = None
  outcomes: tuple[Outcome, ...] = dataclasses.field(
    default=(), repr=False, compare=False
  )

  @property
  def saved_fraction(self) -> float:
    """Share of the prompt tokens that were not computed."""
    return self.tokens_saved / self.tokens_total

  @property
  def percent_of_upper_bound(self) -> float | None:
    """tokens_saved in percent of the bound; 100 where nothing can be saved."""
    if self.upper_bound_tokens is None:
      return None
    if not self.upper_bound_tokens:
      return 100.0
    return 100 * self.tokens_saved / self.upper_bound_tokens

  @property
  def meanings(self) -> dict[str, str]:
    """A sentence for each figure, true for the kind of this capacity."""
    return meanings_of(self.capacity.partition(":")[0])

  def to_json(self) -> dict[str, Any]:
    """Returns the fields, the shares that follow from them, and meanings."""
    reusable = max(self.reusable_tokens, 1)
    fields = dataclasses.asdict(dataclasses.replace(self, outcomes=()))
    del fields["outcomes"]
    return fields | {
      "saved_fraction": self.saved_fraction,
      "saved_fraction_of_reusable": self.tokens_saved / reusable,
      "percent_of_upper_bound": self.percent_of_upper_bound,
      "meanings": self.meanings,
    }

  def table(self) -> str:
    """Returns a line for each figure: its name, its value and its meaning."""
    content, lines = self.to_json(), []
    for name, meaning in self.meanings.items():
      value = _text(content[name])
      lines.append(f"{name:28}{value:>16}  {meaning}")
    return "\n".join(lines)


def _text(value: int | float | Mapping[str, int] | None) -> str:
  """A figure as it is printed."""
  if isinstance(value, Mapping):
    return ", ".join(f"{n} {name}" for name, n in value.items()) or "none"
  if value is None:
    return "none"
  return format(value, ".0f" if value == int(value) else ".7g")


def write_json(
  path: str | Path, report: SimulationReport | Sequence[SimulationReport]
) -> None:
  """Writes one report, or a list of them, as JSON.

  Args:
    path: File to write; missing folders are made.
    report: What to write.

  Raises:
    OSError: If the file cannot be written.
  """
  one = isinstance(report, SimulationReport)
  content = report.to_json() if one else [r.to_json() for r in report]
  write_json_file(path, content)


@dataclass
class Tally:
  """Counts of a replay while it runs; only measured requests are added.

  Attributes:
    requests: As in `SimulationReport`, like all that are not said here.
    tokens_total: See there.
    tokens_saved: See there.
    reusable_tokens: See there.
    hits: See there.
    overlapping_requests: See there.
    states: The sum behind the mean number of states per entry.
    peak: States stored at one time, at most.
    bytes_peak: See there.
    evicted_states: See there.
    refused_requests: See there.
    moves: See there.
    moved_bytes: See there.
    state_share: See there.
    reasons: See there; empty unless a store is replayed.
    lost_tokens: See there; likewise.
    refused: Places in the stream of those that were refused.
    outcomes: See there.
  """

  requests: int = 0
  tokens_total: int = 0
  tokens_saved: int = 0
  reusable_tokens: int = 0
  hits: int = 0
  overlapping_requests: int = 0
  states: int = 0
  peak: int = 0
  bytes_peak: int | None = None
  evicted_states: int | None = None
  refused_requests: int | None = None
  moves: int | None = None
  moved_bytes: int | None = None
  state_share: float | None = None
  reasons: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  lost_tokens: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  refused: list[int] = dataclasses.field(default_factory=list)
  outcomes: list[Outcome] = dataclasses.field(default_factory=list)

  def add(self, outcome: Outcome, *, states: int) -> None:
    """Counts one measured request.

    Args:
      outcome: What became of it.
      states: States that it kept.
    """
    self.requests += 1
    self.tokens_total += outcome.length
    self.tokens_saved += outcome.restored
    self.reusable_tokens += outcome.overlap
    self.hits += outcome.restored > 0
    self.overlapping_requests += outcome.overlap > 0
    self.states += states
    if outcome.reason is not None:
      self.reasons[outcome.reason] += 1
      self.lost_tokens[outcome.reason] += outcome.lost
    self.outcomes.append(outcome)
