"""How time grows: prefill, resume, capture, match, insert, placement.

    python -m benchmarks.growth --output=FILE.json --plot=FILE.png

Each quantity is measured over its sizes, in turn, and the medians are fitted by
a power: the exponent is the slope of log time over log size, over all sizes and
over the larger half, where what does not grow weighs less. Beside it stands the
exponent that the mathematics has over the same sizes.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from tqdm import trange

from benchmarks import command_line
from benchmarks.latency import Case, LatencyMeter
from benchmarks.record import write_result
from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import serve
from sparse_prefix_jax.models import ModelConfig
from sparse_prefix_jax.models.cost import prefill_flops
from sparse_prefix_jax.placement import (
  PlacementPolicy,
  Planner,
  solve_placement,
)

_PRESET = flags.DEFINE_string("preset", "qwen3_5_0_8b_group", "Which model.")
_LENGTHS = flags.DEFINE_list(
  "lengths", [str(2**e) for e in range(10, 15)] + ["32704"], "Tokens."
)
_ENTRIES = flags.DEFINE_list(
  "entries", ["10", "100", "1000", "10000"], "Stored entries."
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of each size.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")
_PLOT = flags.DEFINE_string("plot", None, "PNG file for the picture.")


class Growth(NamedTuple):
  """One quantity over its sizes, in seconds; `expected` is its exponent."""

  name: str
  size: str
  sizes: list[int]
  seconds: list[float]
  expected: float

  def exponent(self, larger_half: bool = False) -> float:
    """Slope of log seconds over log size."""
    first = len(self.sizes) // 2 if larger_half else 0
    return slope(self.sizes[first:], self.seconds[first:])


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
  """Least squares of log values over log sizes."""
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def seconds(call: Callable[[], object]) -> float:
  """Wall time of one call."""
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def in_turn(calls: Sequence[Callable[[], float]], name: str) -> list[float]:
  """Medians of what the calls return, one after the other, again and again."""
  rounds = [
    [call() for call in calls] for _ in trange(_REPEATS.value, desc=name)
  ]
  return [statistics.median(column) for column in zip(*rounds)]


def of_prefill(config: ModelConfig, lengths: list[int]) -> list[Growth]:
  """Cold, resumed from half, and with eight states captured."""
  cases = {
    "prefill": [Case(n, 0, 0) for n in lengths],
    "resume from half": [Case(n, n // 128 * 64, 0) for n in lengths],
    "prefill, 8 captures": [Case(n, 0, 8) for n in lengths],
  }
  meter = LatencyMeter(config, [c for kind in cases.values() for c in kind])
  flops = prefill_flops(config).at
  grown = []
  for name, kind in cases.items():
    times = in_turn([lambda c=c: meter.seconds(c) for c in kind], name)
    work = [flops([c.length])[0] - flops([c.resumed])[0] for c in kind]
    grown.append(Growth(name, "tokens", lengths, times, slope(lengths, work)))
  return grown


def of_index(sizes: list[int]) -> list[Growth]:
  """Match and a request's life on the host; prompts share half their tokens."""
  chunk, blocks = 64, 32
  rng = np.random.default_rng(0)
  shared = rng.integers(0, 512, (16, chunk * blocks // 2))
  matched, inserted = [], []

  def prompt() -> Request:
    own = rng.integers(0, 512, chunk * blocks // 2)
    whole = np.concatenate([shared[rng.integers(16)], own])
    return Request.of_tokens(whole.astype(np.int32), chunk)

  for size in sizes:
    budget = Budget(2 * size * (blocks + 2) + 1000, 1, 1)
    planner = Planner(PlacementPolicy("last"), depths=2 * blocks, serving=True)
    store = PrefixStore(budget, planner, chunk=chunk)
    for _ in range(size):
      serve(store, prompt())
    probes = [prompt() for _ in range(200)]
    calls = (matched, store.match), (inserted, partial(serve, store))
    for times, call in calls:
      times.append(
        statistics.median(seconds(partial(call, probe)) for probe in probes)
      )
  return [
    Growth("match", "entries", sizes, matched, 0.0),
    Growth("insert", "entries", sizes, inserted, 0.0),
  ]


def of_placement() -> list[Growth]:
  """Over depths at 30 states, and over states at 4,096 depths."""
  depths = [1024, 2048, 4096, 8192, 16384]
  budgets = [4, 8, 16, 32, 64]
  pairs = [(n, 30) for n in depths] + [(4096, m) for m in budgets]

  def solve(n: int, m: int) -> float:
    weights = np.random.default_rng(n).integers(0, 100, n)
    solved = solve_placement(weights, m, integer="int64")
    del solved  # compiled
    return statistics.median(
      seconds(
        lambda: int(solve_placement(weights, m, integer="int64").objective)
      )
      for _ in range(5)
    )

  times = in_turn([lambda p=p: solve(*p) for p in pairs], "placement")
  return [
    Growth("placement over N", "depths", depths, times[: len(depths)], 1.0),
    Growth("placement over M", "states", budgets, times[len(depths) :], 1.0),
  ]


def plot(grown: list[Growth], path: str) -> None:
  """A panel per quantity, both axes logarithmic."""
  figure = command_line.figures(_PLOT).Figure(
    figsize=(13, 6), layout="constrained"
  )
  panels = figure.subplots(2, 4).flat
  for axes, g in zip(panels, grown, strict=False):
    axes.loglog(g.sizes, g.seconds, "o-")
    axes.set_ylim(min(g.seconds) / 3, max(g.seconds) * 3)
    axes.set_xticks(g.sizes[::2], [f"{size:,}" for size in g.sizes[::2]])
    axes.minorticks_off()
    axes.set_title(f"{g.name}: {g.exponent():.2f}", fontsize="medium")
    axes.set_xlabel(g.size)
    axes.set_ylabel("seconds")
    axes.grid(alpha=0.3)
  for axes in panels[len(grown) :]:
    axes.remove()
  figure.suptitle("time against size, with the fitted exponent")
  figure.savefig(path, dpi=130)


def table(grown: list[Growth]) -> str:
  """A line per quantity: exponents, and milliseconds of every size."""
  lines = []
  for g in grown:
    times = ", ".join(
      f"{size}: {1e3 * value:.3g}" for size, value in zip(g.sizes, g.seconds)
    )
    lines.append(
      f"{g.name:20s} exponent {g.exponent():5.2f}, larger half "
      f"{g.exponent(True):5.2f}, expected {g.expected:5.2f}; ms by {g.size}: "
      f"{times}"
    )
  return "\n".join(lines)


def _json(g: Growth) -> dict[str, Any]:
  return g._asdict() | {
    "exponent": g.exponent(),
    "exponent_of_larger_half": g.exponent(True),
  }


def main(argv: list[str]) -> None:
  """Measures, prints, draws and keeps the result."""
  with command_line.one_sentence(argv):
    config = command_line.model(_PRESET)
    # Three sizes, so that two are left for the larger half.
    entries = command_line.whole_numbers(_ENTRIES, ascending=3)
    lengths = command_line.whole_numbers(
      _LENGTHS,
      least=8 * config.numerics.chunk,
      most=config.numerics.max_length,
      ascending=3,
    )
    command_line.writable(_OUTPUT, _PLOT)
    command_line.figures(_PLOT)
  grown = of_index(entries)
  grown += of_placement()
  grown += of_prefill(config, lengths)
  print(table(grown))
  if _PLOT.value:
    plot(grown, _PLOT.value)
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"growth": [_json(g) for g in grown]})


if __name__ == "__main__":
  app.run(main)
