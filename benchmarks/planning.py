"""How long a request waits for its placement, made at once or beside it.

    python -m benchmarks.planning [--tokens=131072] [--requests=300] [--gap=20]

A stream of long prompts that share a system prompt, a document or a whole
conversation is placed by each policy, with nothing but its planner at work, and
with as many milliseconds between two requests as `--gap` says: a model computes
then, and leaves the interpreter to the plan. What is timed is `describe`,
`observe` and `positions`. "At once" is what the paper's rules do: every tenth
request makes the plan that it is placed by. CPU times are those of the
request's own thread. Numbers depend on who else uses the machine.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax.placement import (
  DEFAULT_CHUNK,
  PlacementPolicy,
  Planner,
  Prompt,
)

_TOKENS = flags.DEFINE_integer(
  "tokens", 131_072, "Tokens of the longest prompt.", 100 * DEFAULT_CHUNK
)
_REQUESTS = flags.DEFINE_integer("requests", 300, "Requests per case.", 40)
_GAP = flags.DEFINE_float("gap", 20.0, "Milliseconds between requests.", 0.0)
# Tests import other benchmarks, with an output of theirs, into one process.
_OUTPUT = flags.DEFINE_string(
  "output",
  "benchmarks/results/planning.json",
  "JSON file to write.",
  allow_override=True,
)

CASES = (
  PlacementPolicy("conditional", 1),
  PlacementPolicy("conditional", 8),
  PlacementPolicy("optimal", 2),
  PlacementPolicy("optimal", 30),
)
WAYS = {"at_once": {}, "beside": {"serving": True}}


def stream(longest: int, requests: int) -> Iterator[tuple[int, int]]:
  """Lengths and overlaps: a system prompt, a document, or nearly all of it."""
  rng = np.random.default_rng(0)
  for _ in range(requests):
    length = int(rng.integers(longest - longest // 10, longest))
    tail = int(rng.integers(1, longest // 20))
    yield length, (longest // 32, length // 2, length - tail)[rng.integers(3)]


def waits(
  policy: PlacementPolicy, options: dict[str, Any]
) -> tuple[list[float], list[float]]:
  """Milliseconds of every request, by the clock and of its thread."""
  depths = _TOKENS.value // DEFAULT_CHUNK + 1
  planner = Planner(policy, depths=depths, **options)
  planner.compile()
  clock, thread, matched = [], [], None
  ids = np.random.default_rng(1).integers(0, 50_000, _TOKENS.value)
  ids = ids.astype(np.int32)
  for length, shared in stream(_TOKENS.value, _REQUESTS.value):
    overlap = shared if matched else 0
    prompt = Prompt(ids[:length])
    times = time.perf_counter(), time.thread_time()
    entry = planner.describe(length, overlap, matched, prompt)
    planner.observe(overlap, entry=entry, matched=matched, prompt=prompt)
    planner.positions(length, entry)
    clock.append(1e3 * (time.perf_counter() - times[0]))
    thread.append(1e3 * (time.thread_time() - times[1]))
    matched = entry
    time.sleep(_GAP.value / 1e3)
  return clock, thread


def summary(milliseconds: list[float]) -> dict[str, float]:
  """Median, 99th percentile and maximum."""
  median, most = np.quantile(milliseconds, [0.5, 0.99])
  return {
    "median": round(float(median), 3),
    "p99": round(float(most), 3),
    "max": round(max(milliseconds), 3),
  }


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  cases: dict[str, Any] = {}
  for policy in tqdm(CASES, "policies", unit="policy"):
    of_one = cases.setdefault(f"{policy.name}:{policy.budget}", {})
    for way, options in WAYS.items():
      clock, thread = waits(policy, options)
      of_one[way] = {"clock": summary(clock), "thread": summary(thread)}
  result = {
    "tokens": _TOKENS.value,
    "requests": _REQUESTS.value,
    "milliseconds_between": _GAP.value,
    "milliseconds_waited": cases,
  }
  write_result(_OUTPUT.value, result)
  for name, of_one in cases.items():
    for way, measured in of_one.items():
      print(f"{name:15} {way:8} {measured['clock']} ms")


if __name__ == "__main__":
  app.run(main)
