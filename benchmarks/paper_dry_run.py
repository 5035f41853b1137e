"""The paper's simulator, cell by cell, against figures that it gave.

    python -m benchmarks.paper_dry_run --anchor=FILE --data=DIR [--output=JSON]

`--anchor` is a JSON object of streams; each has `fifo_capacity_sequences` and
`strategies`, by name the figures `tokens_saved`, `hits`, `reusable_kv` and
`mean_ckpts`. `--data` is the folder with `<stream>.mod512.npz`. Prints how many
cells differ in any of the four. The exit status is 1 if tokens_saved is off by
more than a cell is allowed: nothing, or 1e-4 where rounding decides ties.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax.evaluation import (
  Capacity,
  Lookup,
  SimulationReport,
  look_up,
  simulate,
)
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import Trace, interleave, load_token_file

_ANCHOR = flags.DEFINE_string(
  "anchor", None, "JSON with the paper's figures.", required=True
)
_DATA = flags.DEFINE_string(
  "data", None, "Folder with the token files.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", "benchmarks/results/paper_dry_run.json", "JSON file to write."
)

WARMUP = 0.6
# Their budget exceeds the bins that are not empty, so rounding decides ties.
LOOSE = {("quality_proxy_clean", "dp_300"), ("system_prompts_clean", "dp_30")}
# The name of this cell is not its budget.
BUDGETS = {("quality_proxy_clean", "dp_25"): 20}


def policy_of(stream: str, cell: str) -> PlacementPolicy:
  """The policy behind the paper's name of a cell."""
  if cell in ("no_cache", "last", "sqrt"):
    return PlacementPolicy(cell)
  if cell == "log":
    return PlacementPolicy("dyadic", 768)
  name, _, number = cell.rpartition("_")
  if not number.isdecimal():
    raise ValueError(f"{cell!r} is no cell: a name and a budget, dp_5 say")
  return PlacementPolicy(name, BUDGETS.get((stream, cell), int(number)))


def figures(report: SimulationReport) -> dict[str, float]:
  """Our figures under the anchor's names."""
  return {
    "tokens_saved": report.tokens_saved,
    "hits": report.overlapping_requests,
    "reusable_kv": report.reusable_tokens,
    "mean_ckpts": report.state_checkpoints_per_entry,
  }


def compare(
  stream: str, cell: str, expected: dict[str, float], report: SimulationReport
) -> dict[str, Any]:
  """One cell: our figures, and whether they are the paper's."""
  ours = figures(report)
  error = abs(ours["tokens_saved"] - expected["tokens_saved"])
  allowed = 1e-4 * expected["tokens_saved"] * ((stream, cell) in LOOSE)
  return ours | {
    "expected_tokens_saved": expected["tokens_saved"],
    "equal": all(ours[name] == expected[name] for name in ours),
    "allowed": error <= allowed,
  }


def run_cell(
  trace: Trace, policy: PlacementPolicy, capacity: Capacity, found: list[Lookup]
) -> SimulationReport:
  """Replays one placement over look-ups that all placements share."""
  return simulate(
    trace, policy, capacity, warmup_fraction=WARMUP, lookups=found
  )


def load(anchor: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Trace]]:
  """The paper's figures and the streams by name, before any replay.

  Raises:
    ValueError: No such JSON, a cell without its figures, or a damaged stream.
    OSError: A file that cannot be read.
  """
  try:
    content = json.loads(anchor.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{anchor} is no JSON: {error}") from None
  figures_of = {"tokens_saved", "hits", "reusable_kv", "mean_ckpts"}
  try:
    for stream, of_one in content.items():
      Capacity("sequences", of_one["fifo_capacity_sequences"])
      for cell, expected in of_one["strategies"].items():
        policy_of(stream, cell)
        if not figures_of <= expected.keys():
          raise KeyError(*sorted(figures_of - expected.keys()))
  except (KeyError, AttributeError, TypeError) as error:
    raise ValueError(
      f"{anchor} has not the form that --help describes: {error}"
    ) from None
  return content, {
    stream: interleave(load_token_file(folder / f"{stream}.mod512.npz"))
    for stream in content
  }


def run_stream(
  stream: str, anchor: dict[str, Any], trace: Trace
) -> dict[str, Any]:
  """All cells of one stream."""
  capacity = Capacity("sequences", anchor["fifo_capacity_sequences"])
  found = look_up(trace, capacity.amount)
  cells = {}
  for cell, expected in tqdm(anchor["strategies"].items(), stream, unit="cell"):
    report = run_cell(trace, policy_of(stream, cell), capacity, found)
    cells[cell] = compare(stream, cell, expected, report)
  return cells


def main(argv: list[str]) -> None:
  """Replays, prints and writes."""
  with command_line.one_sentence(argv):
    anchor, traces = load(Path(_ANCHOR.value), Path(_DATA.value))
    command_line.writable(_OUTPUT)
  start = time.perf_counter()
  streams = {
    name: run_stream(name, cells, traces[name])
    for name, cells in anchor.items()
  }
  cells = [cell for stream in streams.values() for cell in stream.values()]
  differing = sum(not cell["equal"] for cell in cells)
  refused = sum(not cell["allowed"] for cell in cells)
  result = {
    "cells": len(cells),
    "differing_cells": differing,
    "cells_beyond_tolerance": refused,
    "seconds": round(time.perf_counter() - start, 2),
    "streams": streams,
  }
  write_result(_OUTPUT.value, result)
  print(f"{len(cells)} cells, {differing} differ, {refused} beyond tolerance")
  sys.exit(refused > 0)


if __name__ == "__main__":
  app.run(main)
