"""What other requests save after those of one trace, against a fresh start.

    python -m benchmarks.changes --trace=FILE --trace=FILE [--trace=FILE ...]
        [--states=16,64,256] [--before=15000] [--after=1500] [--starts=3]
        [--output=FILE.json]

`adaptive` serves the last requests of one trace, and then some of another one
whose blocks are as large, of which it has seen nothing. What these are spared
is compared with what they would be if they were the first to come; they are
taken from several places of their trace, since 1,500 requests are few. A trace
that is shorter than is asked for comes again with other ids until it is long
enough.
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import command_line, policy_table
from benchmarks.record import write_result
from sparse_prefix_jax.evaluation.anchor_rules import (
  place_adaptively,
  tree_paths,
)
from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.workloads import Trace

_TRACES = flags.DEFINE_multi_string("trace", [], "A Mooncake trace, FILE.")
_STATES = flags.DEFINE_list("states", ["16", "64", "256"], "States in all.")
_BEFORE = flags.DEFINE_integer("before", 15_000, "Requests of one kind.", 1)
_AFTER = flags.DEFINE_integer("after", 1_500, "Requests of the other.", 1)
_STARTS = flags.DEFINE_integer("starts", 3, "Places to take them from.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_APART = 10**7  # More than there are ids in a trace.


def renamed(trace: Trace, number: int) -> Trace:
  """The same requests with ids that no other number gives.

  Args:
    trace: Its ids are below ten million.
    number: Which ids they get.
  """
  shift = _APART * number
  requests = [
    dataclasses.replace(one, ids=one.ids + shift) for one in trace.requests
  ]
  return dataclasses.replace(trace, requests=tuple(requests))


def last_of(trace: Trace, count: int) -> Trace:
  """The last requests of a trace, which comes again while it is too short."""
  times = -(-count // len(trace))
  again = [renamed(trace, number).requests for number in range(times)]
  requests = tuple(itertools.chain(*again))[-count:]
  return dataclasses.replace(trace, requests=requests)


def parts_of(trace: Trace, count: int, starts: int) -> list[Trace]:
  """So many parts of a trace, from its beginning to its end."""
  places = np.linspace(0, max(0, len(trace) - count), starts).astype(int)
  return [
    renamed(
      dataclasses.replace(trace, requests=trace.requests[at : at + count]), 100
    )
    for at in dict.fromkeys(places.tolist())
  ]


def spared(policy: Adaptive, trace: Trace, slots: int) -> int:
  """Blocks that a policy spares the requests of a trace.

  Args:
    policy: Learns from them.
    trace: Its blocks are the policy's.
    slots: States in all.
  """
  paths = tree_paths(trace, trace.block)
  return sum(o.resumed for o in place_adaptively(policy, paths, slots=slots))


def of_a_fresh_start(
  taught: Adaptive, parts: Iterable[Trace], slots: int
) -> list[float]:
  """What each part is spared by a policy that has served others before.

  Args:
    taught: Is not changed.
    parts: Requests of which it has seen nothing.
    slots: States in all.

  Returns:
    Per part, its share of what a new policy spares it.
  """
  ratios = []
  for part in parts:
    fresh = spared(Adaptive(block=part.block), part, slots)
    changed = spared(copy.deepcopy(taught), part, slots)
    ratios.append(round(changed / max(fresh, 1), 3))
  return ratios


def measured(traces: list[Trace], slots: list[int]) -> Iterator[dict[str, Any]]:
  """A row for every two traces with blocks of one size."""
  for first, count in itertools.product(traces, slots):
    taught = Adaptive(block=first.block)
    spared(taught, last_of(first, _BEFORE.value), count)
    for then in traces:
      if then is not first and then.block == first.block:
        parts = parts_of(then, _AFTER.value, _STARTS.value)
        yield {
          "first": first.name,
          "then": then.name,
          "slots": count,
          "of_a_fresh_start": of_a_fresh_start(taught, parts, count),
        }


def main(argv: list[str]) -> None:
  """Replays, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    slots = command_line.whole_numbers(_STATES)
    traces = [policy_table.parse_trace(text) for text in _TRACES.value]
    if not any(
      a.block == b.block for a, b in itertools.combinations(traces, 2)
    ):
      raise ValueError("two traces must have blocks of one size")
    command_line.writable(_OUTPUT)
  rows = []
  for row in measured(traces, slots):
    print(row, flush=True)
    rows.append(row)
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
