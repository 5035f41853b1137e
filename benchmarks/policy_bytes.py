"""What policies save with so many bytes in all, of states and of pages.

The replay is that of the store: what a server with this capacity would save.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks.policy_table import (
  figures,
  parse_trace,
  policy_name,
  shares,
)
from sparse_prefix_jax import preset
from sparse_prefix_jax.byte_sizes import parse_bytes
from sparse_prefix_jax.evaluation import (
  Capacity,
  ModelSizes,
  SimulationReport,
  simulate,
)
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import Trace

POLICIES: tuple[tuple[str, float | None, str | None, str | None], ...] = (
  ("last", None, "fifo", "undivided"),
  ("last", None, "lru", "undivided"),
  ("last", None, "branch_lru", "undivided"),
  ("last", None, "marconi", "undivided"),
  ("last", None, "greedy_dual", "undivided"),
  ("conditional", 1, "lru", "undivided"),
  ("conditional", 2, "lru", "undivided"),
  ("adaptive", None, None, "undivided"),
  ("adaptive", None, None, None),
)
"""Placement, budget, which state goes first, and how the capacity is divided:
not at all, or as the requests say, which is what a server does."""


class BytesCase(NamedTuple):
  """A stream, and with how many bytes it is replayed."""

  trace: Trace
  capacities: tuple[int, ...]


def parse_bytes_case(text: str) -> BytesCase:
  """Reads `FILE@SIZE,SIZE,...` or `FILE:N@SIZE,...` for its first N requests.

  Raises:
    ValueError: The text is of another form, or the file no trace.
    OSError: The file cannot be read.
  """
  where, _, sizes = text.rpartition("@")
  if not where:
    raise ValueError(f"a trace must be FILE@SIZE,SIZE,..., got {text}")
  amounts = [parse_bytes(size, name="capacity") for size in sizes.split(",")]
  return BytesCase(parse_trace(where), tuple(amounts))


def ends_of(trace: Trace) -> Trace:
  """Its longest request and its shortest: does anything fit a capacity?

  Args:
    trace: Not empty.
  """
  by_length = sorted(trace.requests, key=lambda request: request.length)
  return dataclasses.replace(trace, requests=(by_length[-1], by_length[0]))


def check_capacities(case: BytesCase, model: str, dtype: str) -> None:
  """Refuses what would end in the middle of a replay.

  Args:
    case: As in `rows_of_bytes`.
    model: As in `rows_of_bytes`.
    dtype: As in `rows_of_bytes`.

  Raises:
    ValueError: No request fits one of the capacities.
  """
  ends = BytesCase(ends_of(case.trace), case.capacities)
  for _ in rows_of_bytes(ends, model, dtype):
    pass


def rows_of_bytes(
  case: BytesCase, model: str, dtype: str
) -> Iterator[dict[str, Any]]:
  """Replays every policy with every capacity.

  Args:
    case: What to replay.
    model: Name of the preset that gives the bytes of a state and of a page.
    dtype: Of its keys and values.

  Yields:
    A row per capacity: the bound and, by policy, what `figures` says.
  """
  sizes = ModelSizes.of_model(preset(model, dtype=dtype), case.trace.block)
  for amount in case.capacities:
    reports = _reports(case.trace, sizes, amount)
    bounds = [report.upper_bound_tokens or 0 for report in reports.values()]
    # They differ only where a divided capacity refuses what another one takes.
    bound = max(bounds)
    outcomes = {name: report.outcomes for name, report in reports.items()}
    yield {
      "stream": case.trace.name,
      "requests": len(case.trace),
      "capacity_bytes": amount,
      "refused": max(r.refused_requests or 0 for r in reports.values()),
      "upper_bound_tokens": bound,
      **figures(outcomes, bound),
    }


def _reports(
  trace: Trace, sizes: ModelSizes, amount: int
) -> dict[str, SimulationReport]:
  """A replay by every policy."""
  return {
    policy_name(name, budget, eviction)
    + ("" if share else " divided"): simulate(
      trace,
      PlacementPolicy(name, budget, trace.block),
      Capacity("bytes", amount),
      eviction=eviction,
      sizes=sizes,
      state_share=share,
    )
    for name, budget, eviction, share in POLICIES
  }


def bytes_line(row: dict[str, Any]) -> str:
  """A row as it is printed."""
  saved = "  ".join(
    f"{name} {percent}"
    for name, percent in row["percent_of_upper_bound"].items()
  )
  return f"{row['stream']} {row['capacity_bytes'] / 2**30:g} GiB: {saved}"


def bytes_table(rows: Iterable[dict[str, Any]]) -> list[str]:
  """The lines of a table in Markdown, as docs/results.md has it."""
  lines = []
  for row in rows:
    cells = [row["stream"].replace(".jsonl.xz", "")]
    cells.append(f"{row['capacity_bytes'] / 2**30:g} GiB")
    cells += [f"{row['upper_bound_tokens'] / 1e6:,.2f} M", *shares(row)]
    lines.append(f"| {' | '.join(cells)} |")
  return lines
