"""What policies save with K states, in percent of what no policy can exceed.

What `benchmarks/policies.py` measures and the tests try.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparse_prefix_jax import prefill_flops, preset
from sparse_prefix_jax.evaluation.anchor_rules import (
  Path as TreePath,
)
from sparse_prefix_jax.evaluation.anchor_rules import (
  Wanted,
  place_adaptively,
  replay_adaptive,
  replay_states,
  tree_paths,
  wanted_depths,
)
from sparse_prefix_jax.evaluation.outcomes import Outcome
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.placement.bounds import (
  hindsight,
  intervals_of,
  upper_bound,
)
from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.workloads import (
  Trace,
  adversarial_streams,
  changed_regime,
  load_mooncake,
)

PLACED: tuple[tuple[str, float | None, str], ...] = (
  ("last", None, "fifo"),
  ("last", None, "lru"),
  ("conditional", 0.5, "lru"),
  ("conditional", 1, "fifo"),
  ("conditional", 1, "lru"),
  ("conditional", 2, "lru"),
  ("conditional", 4, "lru"),
)
"""Placements with their budgets, and which state goes first."""

MODEL = "qwen3_5_0_8b"
"""Whose operations of a prefill are counted."""

SLOTS = {
  "hot_prefix": (4, 8),
  "cyclic_scan": (16,),
  "regime_change": (4, 8),
  "two_tenants": (4, 6),
}
"""With how many states the streams of the library are tried."""

BEFORE, AFTER = 15_000, 1_500


class Case(NamedTuple):
  """A stream, and with how many states it is replayed."""

  trace: Trace
  slots: tuple[int, ...]


def parse_case(text: str) -> Case:
  """Reads a trace, `FILE@K,K,...` or `FILE:N@K,K,...` for its first N requests.

  Raises:
    ValueError: The text is of another form, or the file no trace.
    OSError: The file cannot be read.
  """
  where, _, slots = text.rpartition("@")
  numbers = slots.split(",")
  if not where or not all(n.isdecimal() and int(n) for n in numbers):
    raise ValueError(f"a trace must be FILE@K,K,... with K from 1, got {text}")
  return Case(parse_trace(where), tuple(map(int, numbers)))


def parse_trace(text: str) -> Trace:
  """Reads a trace, `FILE` or `FILE:N` for its first N requests.

  Raises:
    ValueError: The text is of another form, or the file no trace.
    OSError: The file cannot be read.
  """
  path, _, first = text.rpartition(":") if ":" in text else (text, "", "")
  if first and not (first.isdecimal() and int(first)):
    raise ValueError(f"a number of requests must stand behind :, got {text}")
  trace = load_mooncake(Path(path))
  if not first:
    return trace
  return dataclasses.replace(
    trace,
    name=f"{trace.name}:{first}",
    requests=trace.requests[: int(first)],
  )


def own_cases() -> list[Case]:
  """The streams that the library makes itself."""
  return [Case(t, SLOTS[name]) for name, t in adversarial_streams().items()]


def rows_of(case: Case) -> Iterator[dict[str, Any]]:
  """Replays every policy with every number of states.

  Yields:
    A row per number of states: the bound, what one plan with hindsight reaches
    and, by policy, what `figures` says.
  """
  trace, block = case.trace, case.trace.block
  paths = tree_paths(trace, block)
  intervals = intervals_of(paths)
  wanted = {one[:2]: _wanted(trace, paths, *one[:2]) for one in PLACED}
  for slots in case.slots:
    bound = upper_bound(intervals, slots)
    outcomes = _outcomes(trace, paths, wanted, slots)
    yield {
      "stream": trace.name,
      "requests": len(trace),
      "slots": slots,
      "upper_bound_tokens": block * bound.blocks,
      "hindsight_tokens": block * hindsight(intervals, bound, slots),
      **figures(outcomes, block * bound.blocks),
    }


def _outcomes(
  trace: Trace,
  paths: list[TreePath],
  wanted: Mapping[tuple[str, float | None], list[Wanted]],
  slots: int,
) -> dict[str, Sequence[Outcome]]:
  """What becomes of every request under every policy with K states."""
  found: dict[str, Sequence[Outcome]] = {}
  for name, budget, eviction in PLACED:
    found[policy_name(name, budget, eviction)] = replay_states(
      trace,
      wanted[name, budget],
      paths,
      chunk=trace.block,
      slots=slots,
      warmup=0,
      eviction=eviction,
    ).outcomes
  weighed = Adaptive(block=trace.block)
  found["adaptive"] = replay_adaptive(
    trace, weighed, paths, chunk=trace.block, slots=slots, warmup=0
  ).outcomes
  return found


def figures(
  outcomes: Mapping[str, Sequence[Outcome]], bound: int
) -> dict[str, Mapping[str, float]]:
  """What policies save: tokens, operations of a prefill, and of the bound.

  Args:
    outcomes: What became of the requests of one stream, by policy.
    bound: What none can save more tokens than.

  Returns:
    `tokens_saved`, `percent_of_flops` (of all prompts, computed whole, by
    `MODEL`) and `percent_of_upper_bound`, each by policy.
  """
  saved = {
    n: sum(one.restored for one in found) for n, found in outcomes.items()
  }
  return {
    "tokens_saved": saved,
    "percent_of_flops": {n: _flops(found) for n, found in outcomes.items()},
    "percent_of_upper_bound": {
      name: round(100 * tokens / max(bound, 1), 2)
      for name, tokens in saved.items()
    },
  }


def _flops(outcomes: Sequence[Outcome]) -> float:
  """Percent of the operations of all prefills that are spared."""
  cost = prefill_flops(preset(MODEL))
  spared = cost.at([one.restored for one in outcomes]).sum()
  whole = cost.at([one.length for one in outcomes]).sum()
  return round(100 * float(spared / whole), 2)


def percent(case: Case) -> float:
  """What `adaptive` saves in percent of the bound, the mean over the slots."""
  block, found = case.trace.block, []
  intervals = intervals_of(tree_paths(case.trace, block))
  for slots in case.slots:
    bound = max(upper_bound(intervals, slots).blocks, 1)
    found.append(100 * sum(_resumed(case.trace, slots)) / bound)
  return sum(found) / len(found)


def tenants(slots: Iterable[int] = SLOTS["two_tenants"]) -> list[dict]:
  """What each of two tenants in turn is spared, by `adaptive`."""
  trace = adversarial_streams()["two_tenants"]
  rows = []
  for count in slots:
    resumed = _resumed(trace, count)
    halves = [trace.block * sum(resumed[tenant::2]) for tenant in (0, 1)]
    rows.append({"slots": count, "tokens_saved": halves})
  return rows


def changes(
  slots: Iterable[int] = (4, 8, 16), before: int = BEFORE, after: int = AFTER
) -> list[dict]:
  """What is saved after a change of regime, against a fresh start."""
  rows = []
  for documents_first in (True, False):
    trace = changed_regime(
      before=before, after=after, documents_first=documents_first
    )
    late = dataclasses.replace(trace, requests=trace.requests[before:])
    for count in slots:
      changed = sum(_resumed(trace, count)[before:])
      fresh = sum(_resumed(late, count))
      rows.append(
        {
          "first": "documents" if documents_first else "conversations",
          "slots": count,
          "of_a_fresh_start": round(changed / fresh, 4),
        }
      )
  return rows


def line(row: dict[str, Any]) -> str:
  """A row as it is printed."""
  shown = " ".join(
    f"{name} {percent:.1f}"
    for name, percent in row["percent_of_upper_bound"].items()
  )
  plan = 100 * row["hindsight_tokens"] / max(row["upper_bound_tokens"], 1)
  return f"{row['stream']} {row['slots']}: {shown} (hindsight {plan:.1f})"


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
  """The lines of a table in Markdown, as docs/results.md has it."""
  lines = []
  for row in rows:
    bound = row["upper_bound_tokens"]
    plan = 100 * row["hindsight_tokens"] / max(bound, 1)
    cells = [row["stream"].replace(".jsonl.xz", ""), f"{row['slots']:,}"]
    cells += [f"{bound / 1e6:,.2f} M", *shares(row), f"{plan:.1f}"]
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def shares(row: dict[str, Any]) -> list[str]:
  """Per policy, percent of the bound and, in brackets, of the operations."""
  of_bound, of_flops = row["percent_of_upper_bound"], row["percent_of_flops"]
  return [f"{of_bound[n]:.1f} ({of_flops[n]:.1f})" for n in of_bound]


def policy_name(name: str, budget: float | None, eviction: str | None) -> str:
  """A policy as results name it; `lru` is left out, and what others bring.

  >>> policy_name("conditional", 0.5, "fifo"), policy_name("last", None, "lru")
  ('conditional:0.5 fifo', 'last')
  """
  placed = name if budget is None else f"{name}:{budget:g}"
  return placed if eviction in (None, "lru") else f"{placed} {eviction}"


def _wanted(
  trace: Trace, paths: list[TreePath], name: str, budget: float | None
) -> list[Wanted]:
  """What a placement wants, however many states are held."""
  policy = PlacementPolicy(name, budget, chunk=trace.block)
  depths = max(2, trace.longest // trace.block + 1)
  planner = Planner(policy, depths=depths)
  return list(wanted_depths(trace, planner, paths, warmup=0))


def _resumed(trace: Trace, slots: int) -> list[int]:
  """Blocks that each request resumes after, by `adaptive`."""
  policy = Adaptive(block=trace.block)
  paths = tree_paths(trace, trace.block)
  return [one.resumed for one in place_adaptively(policy, paths, slots=slots)]
