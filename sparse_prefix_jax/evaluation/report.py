"""What a replay found, as a frozen record that goes to JSON."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
  """Result of replaying a request stream against one policy.

  Everything from `requests` to `state_checkpoints_per_entry` counts the
  measured requests only, those after the warm-up.

  Attributes:
    trace: name of the stream.
    placement: name of the placement policy.
    budget: its budget, None where it has none.
    eviction: which entry or state leaves first.
    capacity: as on the command line.
    warmup_requests: requests that only filled the cache.
    requests: measured requests.
    tokens_total: their prompt tokens.
    tokens_saved: tokens that a restored state made unnecessary to compute.
    reusable_tokens: tokens that equalled a stored prefix (what one state per
      token would have saved).
    hits: requests whose overlap was not zero.
    state_checkpoints_per_entry: states kept per request, on average. With a
      capacity in sequences, the places that the policy names, as the paper
      counts them (a place within chunk 0 included); in states, the states that
      a request adds, those of its prefix that it resumes from not counted
      again; in bytes, the states that its entry keeps alive, shared ones
      included, and 0 where it was not stored.
    state_checkpoints_peak: states held at one time, at most, warm-up included.
    bytes_peak: bytes held at one time, at most; None where bytes are not
      counted.
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
  state_checkpoints_per_entry: float
  state_checkpoints_peak: int
  bytes_peak: int | None = None

  @property
  def saved_fraction(self) -> float:
    """Share of the prompt tokens that were not computed."""
    return self.tokens_saved / self.tokens_total

  def to_json(self) -> dict[str, Any]:
    """The fields, and the shares that follow from them."""
    reusable = max(self.reusable_tokens, 1)
    return dataclasses.asdict(self) | {
      "saved_fraction": self.saved_fraction,
      "saved_fraction_of_reusable": self.tokens_saved / reusable,
    }


@dataclass
class Tally:
  """Counts of a replay while it runs; only measured requests are added.

  Attributes: as in `Report`; `states` is the sum behind the mean.
  """

  requests: int = 0
  tokens_total: int = 0
  tokens_saved: int = 0
  reusable_tokens: int = 0
  hits: int = 0
  states: int = 0
  peak: int = 0
  bytes_peak: int | None = None

  def add(self, *, length: int, saved: int, overlap: int, states: int) -> None:
    """Counts one measured request.

    Args:
      length: prompt tokens.
      saved: tokens restored.
      overlap: tokens that equalled a stored prefix.
      states: states that it kept.
    """
    self.requests += 1
    self.tokens_total += length
    self.tokens_saved += saved
    self.reusable_tokens += overlap
    self.hits += overlap > 0
    self.states += states
