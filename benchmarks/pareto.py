r"""The paper's experiment: measured latency against states stored.

    python -m benchmarks.pareto --requests=FILE.npz --capacity=sequences:20 \\
      --output=FILE.json --plot=FILE.png

What every strategy matches, restores and captures comes from a full replay of
the stream under the paper's rules. How long that takes is measured with the
real layer group, captures included: on every measured request with --all, else
on a sample. The sample is drawn by strata of (suffix length, restored position,
captures) over the decisions of all strategies together; the latency of a
request is then its floating point operations times the seconds per operation
measured in its stratum. With --replay nothing is measured: tokens saved and
operations alone, in less than a minute. Either way the result says how far
`conditional` is ahead of every other point with as many states.
"""

import collections
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import command_line
from benchmarks.frontier import against_others, frontier, kind_of, sentence
from benchmarks.latency import Case, LatencyMeter
from benchmarks.record import write_result
from sparse_prefix_jax.evaluation import (
  Decision,
  look_up,
  parse_capacity,
  replay_decisions,
)
from sparse_prefix_jax.models import ModelConfig
from sparse_prefix_jax.models.cost import prefill_flops
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.workloads import Trace, interleave, load_token_file

# The budgets of the paper's configurations, and ours at the same ones.
_BUDGETS = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 300)
# An average may be a fraction; blocks of 4,096 and more store less than one.
_AVERAGES = (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 12, 20, 40, 80)
OURS = "conditional"
_STRATEGIES = (
  ["no_cache", "last", "sqrt", "dyadic:768"]
  + [f"block:{b}" for b in (64, 192, 256, 384, 512, 1024, 2048, 3072, 4096)]
  + [f"{OURS}:{budget}" for budget in _AVERAGES]
  + [
    f"{name}:{budget}"
    for name in ("balanced", "dp", "optimal")
    for budget in _BUDGETS
  ]
)

_REQUESTS = flags.DEFINE_string(
  "requests", None, "Token arrays (.npz).", required=True
)
_CAPACITY = flags.DEFINE_string("capacity", "sequences:20", "Entries held.")
_PRESET = flags.DEFINE_string("preset", "qwen3_5_0_8b_group", "Which model.")
_NAMES = flags.DEFINE_list(
  "strategies", _STRATEGIES, "Names of placements, with budgets: balanced:5."
)
_WARMUP = flags.DEFINE_float("warmup_fraction", 0.6, "Not measured.")
_SAMPLES = flags.DEFINE_integer("samples", 2, "Cases per stratum.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 2, "Timed runs of a case.", 1)
_ALL = flags.DEFINE_bool("all", False, "Measure every request.")
_REPLAY = flags.DEFINE_bool("replay", False, "Measure nothing, only count.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")
_PLOT = flags.DEFINE_string("plot", None, "PNG file for the picture.")

_SUFFIXES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_RESTORED = (1, 4096)
_CAPTURES = (1, 9)

Stratum = tuple[int, int, int]


class Point(NamedTuple):
  """One strategy: what it stores and how long requests take.

  `saved` is a share of the prompt tokens, `operations` the mean per request,
  `mean` and `p95` are seconds, None where nothing is measured.
  """

  states: float
  state_bytes: float
  saved: float
  operations: float
  mean: float | None = None
  p95: float | None = None


def policy_of(name: str) -> PlacementPolicy:
  """A placement by its name and budget: `balanced:5`.

  Raises:
    ValueError: An unknown placement, or a budget that is none.
  """
  placement, _, budget = name.partition(":")
  number = (
    command_line.number(budget, f"budget of {name!r}") if budget else None
  )
  return PlacementPolicy(placement, number)


def load(config: ModelConfig) -> Trace:
  """The stream, once all flags are known to fit: measuring takes minutes.

  Raises:
    ValueError: A flag or a prompt out of range.
    OSError: A file that cannot be read, or an output that cannot be written.
  """
  if not [policy_of(name) for name in _NAMES.value]:
    raise ValueError("--strategies must name at least one placement")
  if parse_capacity(_CAPACITY.value).kind != "sequences":
    raise ValueError(
      f"--capacity is {_CAPACITY.value}; the paper's rules count sequences:N"
    )
  if not 0 <= _WARMUP.value < 1:
    raise ValueError(
      f"--warmup_fraction is {_WARMUP.value}; it must be in [0, 1)"
    )
  command_line.writable(_OUTPUT, _PLOT)
  command_line.figures(_PLOT)
  trace = interleave(load_token_file(_REQUESTS.value))
  shortest = min(request.length for request in trace.requests)
  if shortest < 1 or trace.longest > config.numerics.max_length:
    raise ValueError(
      f"--requests has prompts of {shortest} to {trace.longest} tokens; "
      f"{_PRESET.value} takes 1 to {config.numerics.max_length}"
    )
  return trace


def decide(trace: Trace, names: Iterable[str]) -> dict[str, list[Decision]]:
  """Decisions of the measured requests for every strategy."""
  found = look_up(trace, parse_capacity(_CAPACITY.value).amount)
  warmup = int(_WARMUP.value * len(trace))
  decisions = {}
  for name in tqdm(names, "replays", unit="strategy"):
    policy = policy_of(name)
    depths = max(257, trace.longest // policy.chunk + 1)
    planner = Planner(policy, depths=depths, warming_up=warmup > 0)
    replay = list(replay_decisions(trace, planner, found, warmup))
    decisions[name] = replay[warmup:]
  return decisions


def case_of(decision: Decision, chunk: int) -> Case:
  """What the model has to do for a decision.

  A state at the very end of a prompt would leave no token to compute, whose
  logits are wanted: the request resumes one lattice point earlier (1.7).
  """
  last = (decision.length - 1) // chunk * chunk
  resumed = min(decision.resumed // chunk * chunk, last)
  captures = sum(
    mark > resumed and mark % chunk == 0 for mark in decision.marks
  )
  return Case(decision.length, resumed, captures)


def stratum_of(case: Case) -> Stratum:
  """Suffix length, restored position and captures, each by its interval."""
  return (
    int(np.searchsorted(_SUFFIXES, case.length - case.resumed)),
    int(np.searchsorted(_RESTORED, case.resumed, side="right")),
    int(np.searchsorted(_CAPTURES, case.captures, side="right")),
  )


def sample(cases: Iterable[Case], size: int) -> dict[Stratum, list[Case]]:
  """At most `size` different cases of every stratum, drawn at random."""
  strata: dict[Stratum, set[Case]] = collections.defaultdict(set)
  for case in cases:
    strata[stratum_of(case)].add(case)
  rng = np.random.default_rng(0)
  return {
    stratum: [alike[i] for i in rng.permutation(len(alike))[:size].tolist()]
    for stratum, alike in ((s, sorted(c)) for s, c in sorted(strata.items()))
  }


def rates(
  config: ModelConfig, measured: dict[Case, float]
) -> dict[Stratum, float]:
  """Seconds per floating point operation of every stratum."""
  seconds: dict[Stratum, float] = collections.defaultdict(float)
  operations: dict[Stratum, float] = collections.defaultdict(float)
  for case, value in measured.items():
    seconds[stratum_of(case)] += value
    operations[stratum_of(case)] += operations_of(config, case)
  return {s: seconds[s] / operations[s] for s in seconds}


def operations_of(config: ModelConfig, case: Case) -> float:
  """Operations of a suffix, its last chunk counted whole as it is computed."""
  end = -(-case.length // config.numerics.chunk) * config.numerics.chunk
  start, stop = prefill_flops(config).at([case.resumed, end])
  return float(stop - start)


def point(
  config: ModelConfig,
  decisions: list[Decision],
  cases: list[Case],
  latency: list[float] | None,
) -> Point:
  """One strategy's place in the picture."""
  states = statistics.mean(len(d.marks) for d in decisions)
  total = sum(d.length for d in decisions)
  return Point(
    states=states,
    state_bytes=states * state_bytes(config),
    saved=sum(d.resumed for d in decisions) / total,
    operations=statistics.mean(operations_of(config, case) for case in cases),
    mean=statistics.mean(latency) if latency else None,
    p95=float(np.quantile(latency, 0.95)) if latency else None,
  )


_AXES = {
  "saved": "prompt tokens restored, share",
  "operations": "mean operations of a prefill",
  "mean": "mean latency of a prefill, seconds",
  "p95": "p95 latency of a prefill, seconds",
}


def figures() -> tuple[str, str]:
  """The two that are drawn and whose frontier is kept."""
  return ("saved", "operations") if _REPLAY.value else ("mean", "p95")


def plot(
  points: dict[str, Point], config: ModelConfig, title: str, path: str
) -> None:
  """Two figures against states and bytes: the frontier in grey, ours in red."""
  ticks = [0, 1, 2, 4, 8, 16, 32, 64]
  each = state_bytes(config) / 2**20
  labels = [f"{tick}\n{tick * each:.0f}" for tick in ticks]
  figure = command_line.figures(_PLOT).Figure(
    figsize=(12, 5), layout="constrained"
  )
  for axes, of in zip(figure.subplots(1, 2), figures()):
    best = [points[name] for name in frontier(points, of)]
    axes.step(
      [p.states for p in best],
      [getattr(p, of) for p in best],
      where="post",
      color="0.8",
      linewidth=6,
      label="frontier",
    )
    for kind, marker in zip(_kinds(points), "xXPsDov^*", strict=False):
      alike = sorted(
        (p.states, getattr(p, of))
        for name, p in points.items()
        if kind_of(name) == kind
      )
      ours = {"color": "red", "linewidth": 2.5} if kind == OURS else {}
      axes.plot(*zip(*alike), marker=marker, markersize=5, label=kind, **ours)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(ticks, labels)
    axes.set_xlabel("state checkpoints per entry; below, their MiB")
    axes.set_ylabel(_AXES[of])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
  axes.legend(fontsize="small", loc="best")
  figure.suptitle(title)
  figure.savefig(path, dpi=150)


def _kinds(points: dict[str, Point]) -> list[str]:
  return list(dict.fromkeys(kind_of(name) for name in points))


def _measure(
  config: ModelConfig, cases: dict[str, list[Case]]
) -> dict[Case, float]:
  """Seconds of the sample, or of all cases, in random order."""
  every = {case for of_one in cases.values() for case in of_one}
  chosen = every
  if not _ALL.value:
    chosen = set().union(*sample(every, _SAMPLES.value).values())
  meter = LatencyMeter(config, sorted(chosen))
  order = np.random.default_rng(1).permutation(len(chosen) * _REPEATS.value)
  times: dict[Case, list[float]] = collections.defaultdict(list)
  listed = sorted(chosen) * _REPEATS.value
  for index in tqdm(order.tolist(), "prefills", unit="prefill"):
    times[listed[index]].append(meter.seconds(listed[index]))
  return {case: statistics.median(values) for case, values in times.items()}


def _latency(
  config: ModelConfig, case: Case, measured: dict[Case, float], rate: dict
) -> float:
  if case in measured:
    return measured[case]
  return operations_of(config, case) * rate[stratum_of(case)]


def _result(
  points: dict[str, Point],
  measured: dict[Case, float] | None,
  config: ModelConfig,
  compared: dict[str, Any],
) -> dict[str, Any]:
  return {
    "requests": _REQUESTS.value.rpartition("/")[2],
    "capacity": _CAPACITY.value,
    "preset": _PRESET.value,
    "state_bytes": state_bytes(config),
    "page_bytes": page_bytes(config),
    "sample": None if measured is None else _sampled(measured),
    "points": {name: value._asdict() for name, value in points.items()},
    "frontier": {of: frontier(points, of) for of in figures()},
    f"{OURS}_against_others": compared,
  }


def _sampled(measured: dict[Case, float]) -> dict[str, Any]:
  strata = collections.Counter(map(stratum_of, measured))
  return {
    "every_request": _ALL.value,
    "strata": "suffix tokens x restored position x captures",
    "limits": [_SUFFIXES, _RESTORED, _CAPTURES],
    "cases_per_stratum": _SAMPLES.value,
    "repeats": _REPEATS.value,
    "strata_filled": len(strata),
    "cases": [
      [*case, round(seconds, 4)] for case, seconds in sorted(measured.items())
    ],
  }


def _points(
  config: ModelConfig,
  decisions: dict[str, list[Decision]],
  cases: dict[str, list[Case]],
  measured: dict[Case, float] | None,
) -> dict[str, Point]:
  rate = rates(config, measured or {})
  return {
    name: point(
      config,
      decisions[name],
      of_one,
      None
      if measured is None
      else [_latency(config, case, measured, rate) for case in of_one],
    )
    for name, of_one in cases.items()
  }


def _line(name: str, p: Point) -> str:
  line = (
    f"{name:17s} {p.states:7.3f} states {p.state_bytes / 2**20:7.1f} MiB "
    f"saved {p.saved:7.3%} {p.operations / 1e9:7.1f} G operations"
  )
  return (
    line
    if p.mean is None
    else f"{line} mean {p.mean:6.3f} s p95 {p.p95:6.3f} s"
  )


def main(argv: list[str]) -> None:
  """Replays, measures, prints, draws and keeps the result."""
  with command_line.one_sentence(argv):
    config = command_line.model(_PRESET)
    trace = load(config)
  decisions = decide(trace, _NAMES.value)
  cases = {
    name: [case_of(decision, config.numerics.chunk) for decision in made]
    for name, made in decisions.items()
  }
  measured = None if _REPLAY.value else _measure(config, cases)
  points = _points(config, decisions, cases, measured)
  for name, p in points.items():
    print(_line(name, p))
  of_all = list(dict.fromkeys(("saved", "operations", *figures())))
  compared = against_others(points, OURS, of_all)
  for of in of_all:
    print(sentence(compared, OURS, of))
  first = figures()[0]
  print(f"frontier of {first}:", ", ".join(frontier(points, first)))
  if _PLOT.value:
    plot(points, config, f"{trace.name}, {_CAPACITY.value}", _PLOT.value)
  if _OUTPUT.value:
    write_result(_OUTPUT.value, _result(points, measured, config, compared))


if __name__ == "__main__":
  app.run(main)
