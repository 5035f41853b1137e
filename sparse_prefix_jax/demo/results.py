"""What one strategy achieved, and the table of all."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sparse_prefix_jax.demo.serving import Served, bits_apart
from sparse_prefix_jax.demo.strategy import Strategy
from sparse_prefix_jax.demo.stream import Stream

_COLUMNS = (
  ("strategy", "<11"),
  ("budget", ">6"),
  ("states/entry", ">12"),
  ("states held", ">11"),
  ("MiB held", ">8"),
  ("recomputed", ">10"),
  ("first token p50", ">15"),
  ("p95", ">8"),
  ("speed-up", ">8"),
  ("right", ">5"),
  ("differing bits", ">14"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """A row of the report.

  Attributes:
    strategy: name of the placement.
    budget: its budget, None where it has none.
    states_per_entry: states that the entry of a request keeps, on average
      (entries that share a state count it each).
    states_per_entry_peak: the same, of the entry that keeps most.
    states_peak: different states held at one time, at most; the two of the
      running sequence included, as in the next two.
    pages_peak: pages of keys and values held at one time, at most.
    bytes_peak: bytes of both held at one time, at most.
    evicted_states: states dropped to make room.
    tokens_total: tokens of all prompts.
    tokens_recomputed: those that prefill computed.
    first_token_p50_seconds: median time from prompt to logits on the host,
      placement included.
    first_token_p95_seconds: 95th percentile of the same.
    speed_up: time of all prefills of `no_cache` over that of this strategy.
    answers_right: answers that are right, of all requests; None where nobody
      knows the answers.
    differing_bits: bits in which prefill and decode logits differ from those
      of `no_cache`.
  """

  strategy: str
  budget: int | float | None
  states_per_entry: float
  states_per_entry_peak: int
  states_peak: int
  pages_peak: int
  bytes_peak: int
  evicted_states: int
  tokens_total: int
  tokens_recomputed: int
  first_token_p50_seconds: float
  first_token_p95_seconds: float
  speed_up: float
  answers_right: int | None
  differing_bits: int


def summarise(
  strategy: Strategy,
  served: Sequence[Served],
  reference: Sequence[Served],
  stream: Stream,
) -> Result:
  """The row of one strategy.

  Args:
    strategy: what was tried.
    served: its requests.
    reference: the same requests without a cache.
    stream: what was asked.

  Returns:
    Means, peaks, quantiles and the comparison with the reference.
  """
  seconds = np.array([s.seconds for s in served])
  states = [s.states for s in served]
  return Result(
    strategy=strategy.policy.name,
    budget=strategy.policy.budget,
    states_per_entry=float(np.mean(states)),
    states_per_entry_peak=max(states),
    states_peak=max(s.held.held_slots for s in served),
    pages_peak=max(s.held.held_pages for s in served),
    bytes_peak=max(s.held.held_bytes for s in served),
    evicted_states=served[-1].held.evicted_states,
    tokens_total=stream.tokens_total,
    tokens_recomputed=sum(s.recomputed for s in served),
    first_token_p50_seconds=float(np.quantile(seconds, 0.5)),
    first_token_p95_seconds=float(np.quantile(seconds, 0.95)),
    speed_up=float(sum(s.seconds for s in reference) / seconds.sum()),
    answers_right=_right(served, stream),
    differing_bits=bits_apart(served, reference),
  )


def _right(served: Sequence[Served], stream: Stream) -> int | None:
  """How many of the first decoded ids are the answers."""
  if stream.answers is None:
    return None
  given = [int(np.argmax(one.logits[0])) for one in served]
  return sum(x == y for x, y in zip(given, stream.answers, strict=True))


def table(results: Sequence[Result]) -> str:
  """The results as aligned text, one line each under a heading.

  Args:
    results: rows in the order in which they are to stand.

  Returns:
    Lines without trailing spaces; times in milliseconds, bytes in MiB, tokens
    recomputed as a share of all prompt tokens.
  """
  lines = [[name for name, _ in _COLUMNS], *(_cells(r) for r in results)]
  return "\n".join(
    "  ".join(f"{c:{form}}" for c, (_, form) in zip(line, _COLUMNS)).rstrip()
    for line in lines
  )


def _cells(result: Result) -> list[str]:
  """The cells of one line, in the order of the columns."""
  return [
    result.strategy,
    "-" if result.budget is None else str(result.budget),
    f"{result.states_per_entry:.1f}",
    str(result.states_peak),
    f"{result.bytes_peak / 2**20:.1f}",
    f"{result.tokens_recomputed / result.tokens_total:.1%}",
    f"{1e3 * result.first_token_p50_seconds:.1f} ms",
    f"{1e3 * result.first_token_p95_seconds:.0f} ms",
    f"{result.speed_up:.1f}",
    "-" if result.answers_right is None else str(result.answers_right),
    str(result.differing_bits),
  ]
