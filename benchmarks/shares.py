"""How a capacity is divided: chosen shares, against fixed and undivided ones.

    python -m benchmarks.shares TRACE.jsonl.xz [...] [--gib=0.5,2,8,32]
        [--placements=last,conditional:1] [--fixed=16] [--output=FILE.json]

Replays traces through the prefix store with the sizes of qwen3_5_0_8b in
float32. The best of the fixed shares is known in hindsight only.
"""

import pathlib

import numpy as np
from absl import app, flags

from benchmarks import command_line
from benchmarks.policy_bytes import ends_of
from benchmarks.record import write_result
from sparse_prefix_jax import preset
from sparse_prefix_jax.evaluation.model_sizes import ModelSizes
from sparse_prefix_jax.evaluation.store_rules import (
  make_store,
  replay_store,
  store_planner,
)
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import Trace, load_mooncake

_GIB = flags.DEFINE_list("gib", ["0.5", "2", "8", "32"], "Capacities in GiB.")
_PLACEMENTS = flags.DEFINE_list(
  "placements", ["last", "conditional:1"], "Placements, with their budgets."
)
_FIXED = flags.DEFINE_integer("fixed", 16, "How many fixed shares to try.", 1)
_REQUESTS = flags.DEFINE_integer("requests", None, "Only the first so many.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def replay(trace: Trace, placement: str, gib: float, share) -> dict:
  """Saved share of the prompt tokens, and the moves that it took."""
  name, _, budget = placement.partition(":")
  chunk = trace.block
  policy = PlacementPolicy(name, float(budget) if budget else None, chunk)
  sizes = ModelSizes.of_model(preset("qwen3_5_0_8b"), chunk)
  store = make_store(
    store_planner(policy, sizes, depths=trace.longest // chunk + 2),
    sizes,
    capacity_bytes=int(gib * 2**30),
    longest=trace.longest,
    state_share=share,
  )
  tally = replay_store(trace, store, warmup=0)
  return {
    "saved": tally.tokens_saved / tally.tokens_total,
    "moves_per_1000": 1000 * (tally.moves or 0) / len(trace),
    "moved_gib": (tally.moved_bytes or 0) / 2**30,
  }


def cell(trace: Trace, placement: str, gib: float) -> dict:
  """One trace, placement and capacity."""
  shares = np.linspace(0.02, 0.9, _FIXED.value).round(3).tolist()
  fixed = {s: replay(trace, placement, gib, s)["saved"] for s in shares}
  chosen = replay(trace, placement, gib, None)
  best = max(fixed, key=fixed.__getitem__)
  return {
    "trace": trace.name,
    "placement": placement,
    "gib": gib,
    **chosen,
    "best_fixed": fixed[best],
    "best_fixed_share": best,
    "fixed_half": replay(trace, placement, gib, 0.5)["saved"],
    "undivided": replay(trace, placement, gib, "undivided")["saved"],
  }


def main(argv: list[str]) -> None:
  """Replays every cell, prints it, and keeps them where it was asked for."""
  with command_line.one_sentence(argv[:1]):
    traces = [load_mooncake(pathlib.Path(path)) for path in argv[1:]]
    capacities = [
      float(command_line.number(gib, f"--gib={gib}")) for gib in _GIB.value
    ]
    for trace in map(ends_of, traces):  # What is refused is so before hours.
      for placement in _PLACEMENTS.value:
        for gib in capacities:
          cell(trace, placement, gib)
    command_line.writable(_OUTPUT)
  rows = []
  for trace in traces:
    some = trace.requests[: _REQUESTS.value]
    part = Trace(trace.name, some, trace.block)
    for placement in _PLACEMENTS.value:
      for gib in capacities:
        row = cell(part, placement, gib)
        rows.append(row)
        print(
          f"{row['trace']} {placement} {gib:g} GiB: {row['saved']:.4f}, of the "
          f"best fixed ({row['best_fixed_share']}) "
          f"{row['saved'] / max(row['best_fixed'], 1e-9):.3f}, of half "
          f"{row['saved'] / max(row['fixed_half'], 1e-9):.3f}, of undivided "
          f"{row['saved'] / max(row['undivided'], 1e-9):.3f}, "
          f"{row['moves_per_1000']:.1f} moves per 1,000",
          flush=True,
        )
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
