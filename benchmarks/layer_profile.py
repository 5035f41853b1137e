"""Where the time of a prefill goes, per kind of branch and stage.

Read from a trace of the real programs, not from stand-ins: the compiled program
tells the named scope of each of its operations, the profiler when it ran. An
instant at which several operations run is split among them; one at which none
runs belongs to the host.
"""

import collections
import glob
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_prefix_jax import PrefixCache
from sparse_prefix_jax.kernels.chunks import ZERO
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.plan import Segment, build_plan

STAGES = (
  "projection",
  "convolution",
  "heads",
  "recurrence",
  "attention",
  "norms",
  "activation",
)
"""Named scopes of the layers; the rest of a layer is "other"."""

KINDS = ("gated_delta_net", "attention", "swiglu")
"""Named scopes of the branches, with their norms; the rest is "model"."""

RECURRENT = ("convolution", "heads", "recurrence")
"""Stages of a recurrent layer that are not products over all rows."""

_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(.*op_name="([^"]*)"'
)
_CONTAINERS = ("while", "conditional", "call")
_MODULE = "jit__prefill_group"
_HEAD = ("head", "all")
_HOST = ("host", "all")


class Operation(NamedTuple):
  """What the compiled program tells of an operation by its name.

  Attributes:
    scope: Layer kind and stage.
    contains: It runs others (a loop, a call); its own time is what they leave.
  """

  scope: tuple[str, str]
  contains: bool


class Interval(NamedTuple):
  """When an operation ran. Nanoseconds."""

  start: float
  stop: float
  operation: Operation


Shares = dict[tuple[str, str], float]
"""Seconds by layer kind and stage."""


def profile(
  cache: PrefixCache, frozen: programs.FrozenModel, run: Callable[[], object]
) -> Shares:
  """Seconds per layer kind and stage of one call of `run`.

  Args:
    cache: That `run` uses; its pools give the shapes of the program.
    frozen: The model.
    run: A prefill that only fills groups of the largest rung; it must have run
      before, so that nothing compiles.

  Returns:
    Seconds; they add up to the wall time of the call.
  """
  operations = _operations(cache, frozen)
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      start = time.perf_counter()
      run()
      wall = time.perf_counter() - start
    trace = glob.glob(str(Path(folder) / "**/*.xplane.pb"), recursive=True)[0]
    data = jax.profiler.ProfileData.from_file(trace)
    shares = _shares(list(_intervals(data, operations)))
  shares[_HOST] = wall - sum(shares.values())
  return shares


def _operations(
  cache: PrefixCache, frozen: programs.FrozenModel
) -> dict[str, Operation]:
  """The operations of the largest rung's program by name."""
  config, largest = frozen.config, max(frozen.config.numerics.ladder)
  tokens = np.zeros(largest * config.numerics.chunk, np.int32)
  pages = list(range(largest))
  whole = Segment(tokens, start=0, read=ZERO, writes={}, spill=0, pages=pages)
  plan = build_plan(config, [whole], slots=1, pages=len(pages))
  _, group = next(iter(plan.groups(config.numerics.ladder)))
  lowered = programs.prefill_group.lower(frozen, cache.pools, group)
  matches = map(
    _INSTRUCTION.match, str(lowered.compile().as_text()).splitlines()
  )
  return {
    match[1]: Operation(_scope(match[3]), match[2] in _CONTAINERS)
    for match in matches
    if match
  }


def _scope(op_name: str) -> tuple[str, str]:
  """Layer kind and stage: the first known names below the program's."""
  _, *parts = op_name.split("/")
  kind, *inner = parts or [""]
  stages = [part for part in inner if part in STAGES]
  known = kind in KINDS
  return (kind if known else "model", stages[0] if stages else "other")


def _intervals(
  data: Any, operations: dict[str, Operation]
) -> Iterator[Interval]:
  """Runs of all operations; an asynchronous one ends where its mark is."""
  unknown = Operation(("model", "other"), False)
  events = [
    (event, dict(event.stats))
    for plane in data.planes
    for line in plane.lines
    if line.name.startswith("tf_XLA")
    for event in line.events
  ]
  ends = {
    stats["_c"]: event.start_ns
    for event, stats in events
    if event.name.startswith("end: ") and "_c" in stats
  }
  for event, stats in events:
    if "hlo_op" not in stats:
      continue
    operation = operations.get(event.name, unknown)
    if stats["hlo_module"] != _MODULE:
      operation = Operation(_HEAD, False)
    stop = event.start_ns + event.duration_ns
    stop = max(stop, ends.get(stats.get("_p"), stop))
    yield Interval(event.start_ns, stop, operation)


def _shares(intervals: list[Interval]) -> Shares:
  """Splits every instant among the operations that run then."""
  turns = sorted(
    itertools.chain.from_iterable(
      ((i.start, 1, i.operation), (i.stop, -1, i.operation)) for i in intervals
    ),
    key=lambda turn: turn[:2],
  )
  running = {True: collections.Counter(), False: collections.Counter()}
  shares: Shares = collections.defaultdict(float)
  before = turns[0][0] if turns else 0.0
  for instant, change, operation in turns:
    leaves = running[False]
    active = leaves if leaves.total() else running[True]
    for scope, count in active.items():
      if count:
        shares[scope] += (instant - before) / 1e9 * count / active.total()
    running[operation.contains][operation.scope] += change
    before = instant
  return dict(shares)


def recurrent_share(shares: Shares) -> float:
  """Share of the recurrent layers' stages that are no wide products."""
  kinds = ("gated_delta_net",)
  recurrent = sum(shares.get((k, s), 0.0) for k in kinds for s in RECURRENT)
  return recurrent / sum(shares.values())


def table(shares: Shares) -> str:
  """One line per layer kind and stage, the largest first within a kind."""
  total = sum(shares.values())
  order = sorted(shares.items(), key=lambda item: (item[0][0], -item[1]))
  lines = [
    f"{kind:16s} {stage:12s} {1e3 * seconds:9.1f} ms {seconds / total:7.1%}"
    for (kind, stage), seconds in order
  ]
  lines.append(f"{'all':29s} {1e3 * total:9.1f} ms")
  return "\n".join(lines)
