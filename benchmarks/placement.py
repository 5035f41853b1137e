"""Placement on the device against the plain solver in NumPy.

    python -m benchmarks.placement [--output=JSON] [--rounds=5]

Both solve the same integers with M = 30. The plain solver is the O(N^2 M)
recurrence with a vectorised inner maximum, preallocated buffers and no
temporary; the paper's own float64 recurrence, also vectorised, is timed once
for scale. Calls are interleaved, and medians are compared within the run.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax.placement import solve_placement
from sparse_prefix_jax.placement.paper_rule import solve_paper_rule

_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/placement.json", "JSON file to write."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Interleaved repetitions.", 1)

DEPTHS, BUDGET = 4096, 30
GROWTH = (1024, 2048, 4096, 8192, 16384)


def plain_solver(weights: np.ndarray, budget: int) -> int:
  """The least objective for the linear cost, O(N^2 M), one row at a time."""
  depths = len(weights)
  cost = np.arange(depths, dtype=weights.dtype)
  survival = np.cumsum(weights[::-1], dtype=weights.dtype)[::-1].copy()
  area = cost * survival
  values, buffer = area.copy(), np.empty_like(area)
  for _ in range(budget - 1):
    following = values.copy()
    for s in range(1, depths):
      part = buffer[:s]
      np.multiply(cost[:s], survival[s], out=part)
      np.subtract(values[:s], part, out=part)
      following[s] = part.max() + area[s]
    values = following
  return int((weights * cost).sum() - values.max())


def example(depths: int, dtype: str) -> np.ndarray:
  """Random counts whose sum times N just fits int32 at N = 4,096."""
  rng = np.random.default_rng(depths)
  return rng.integers(0, 100, depths).astype(dtype)


def seconds(call: Callable[[], Any]) -> float:
  """Wall time of one call."""
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def solve(weights: np.ndarray, integer: str) -> int:
  """The objective of `solve_placement`, waited for."""
  return int(solve_placement(weights, BUDGET, integer=integer).objective)


def against_plain(rounds: int) -> dict[str, Any]:
  """Medians of both solvers for both types, interleaved."""
  kinds = ("int32", "int64")
  inputs = {kind: example(DEPTHS, kind) for kind in kinds}
  for kind, weights in inputs.items():
    assert solve(weights, kind) == plain_solver(weights, BUDGET)
  times: dict[str, list[float]] = {}
  for _ in tqdm(range(rounds), "against NumPy", unit="round"):
    for kind, weights in inputs.items():
      plain = seconds(lambda w=weights: plain_solver(w, BUDGET))
      times.setdefault(f"numpy_{kind}", []).append(plain)
      for _ in range(5):
        ours = seconds(lambda w=weights, k=kind: solve(w, k))
        times.setdefault(f"ours_{kind}", []).append(ours)
  medians = {name: statistics.median(t) for name, t in times.items()}
  counts = inputs["int64"].astype(np.float64)
  paper = seconds(lambda: solve_paper_rule(counts, BUDGET))
  speedups = {
    kind: medians[f"numpy_{kind}"] / medians[f"ours_{kind}"] for kind in kinds
  }
  return {
    "depths": DEPTHS,
    "budget": BUDGET,
    "median_seconds": medians,
    "paper_float64_seconds": paper,
    "times_faster_than_numpy": speedups,
    "goals": {"int32": 60, "int64": 35},
  }


def growth(rounds: int) -> dict[str, Any]:
  """Medians over N, interleaved, and what each doubling costs."""
  kinds = ("int32", "int64")
  cases = {
    (kind, depths): np.minimum(example(depths, kind), 2**31 // depths**2)
    for kind in kinds
    for depths in GROWTH
  }
  times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
  for (kind, _), weights in cases.items():
    solve(weights, kind)  # compiles
  for _ in tqdm(range(4 * rounds), "growth", unit="round"):
    for case, weights in cases.items():
      times[case].append(seconds(lambda w=weights, c=case: solve(w, c[0])))
  medians = {case: statistics.median(t) for case, t in times.items()}
  return {
    kind: {
      "median_seconds": {n: medians[kind, n] for n in GROWTH},
      "doubling_costs": {
        n: medians[kind, n] / medians[kind, n // 2] for n in GROWTH[1:]
      },
    }
    for kind in kinds
  }


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  result = {
    "against_plain_numpy": against_plain(_ROUNDS.value),
    "growth": growth(_ROUNDS.value),
    "goal_of_a_doubling": 2.4,
  }
  write_result(_OUTPUT.value, result)
  compared = result["against_plain_numpy"]
  for kind, ratio in compared["times_faster_than_numpy"].items():
    ours = compared["median_seconds"][f"ours_{kind}"]
    print(f"{kind}: {1e3 * ours:.2f} ms, {ratio:.0f} times as fast as NumPy")
    costs = result["growth"][kind]["doubling_costs"]
    print("  doubling N:", {n: round(c, 2) for n, c in costs.items()})


if __name__ == "__main__":
  app.run(main)
