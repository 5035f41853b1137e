"""Random traffic through a scheduler: how many bits differ from runs alone.

    python -m benchmarks.schedules [--schedules=2000] [--minutes=M]
      [--output=FILE.json]

Arrivals, budgets, capacities, priorities that preempt, deadlines,
cancellations, swaps, replays and forks are drawn; ids are drawn on the device
at temperature 1. Half of the models are float32, half bfloat16. Prints
schedules tried, bytes compared, bits that differ and what happened; exits with
1 if a bit differs.
"""

import collections
import math
import sys
import time

import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from benchmarks import command_line, record
from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.contract import ColdRuns
from sparse_prefix_jax.contract.traffic import Answers, Traffic

_SCHEDULES = flags.DEFINE_integer("schedules", 2000, "How many to try.", 1)
_MINUTES = flags.DEFINE_integer(
  "minutes", None, "No schedule begins after so many; None for all.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the first schedule.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_FIELDS = {"chunk": 16, "ladder": (4, 8), "max_length": 256, "head_rows": 64}
_LONGEST = 160
# Answers of requests alone are kept for comparison; now and then they are
# dropped, with the model, so that weights and prompts vary too.
_PER_MODEL = 100


def _answers(number: int) -> Answers:
  """A model, and what its requests answer alone."""
  dtype = ("float32", "bfloat16")[number % 2]
  config = preset("tiny", dtype=dtype, **_FIELDS)
  model = HybridDecoder(config, rngs=nnx.Rngs(number))
  return Answers(ColdRuns(model, _LONGEST), number, _LONGEST)


def run(schedules: int, seed: int, end: float) -> dict[str, int]:
  """Tries that many schedules, or until then; counts what happened."""
  counts: collections.Counter[str] = collections.Counter()
  answers = _answers(0)
  for done in tqdm(range(schedules), unit="schedule", mininterval=5):
    if time.perf_counter() > end:
      break
    if done and done % _PER_MODEL == 0:
      answers = _answers(done // _PER_MODEL)
    random = np.random.default_rng(seed + done)

    def draw(low: int, high: int, random=random) -> int:
      return int(random.integers(low, high + 1))

    traffic = Traffic(answers, draw)
    bits = traffic.run()
    counts["schedules"] += 1
    counts["differing_bits"] += bits
    counts["schedules_that_differ"] += bits > 0
    counts["bytes_compared"] += traffic.compared
    counts["steps"] += traffic.scheduler.steps
    counts.update(traffic.scheduler.counts)
  return dict(counts)


def main(argv: list[str]) -> None:
  """Runs, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  start = time.perf_counter()
  end = math.inf if _MINUTES.value is None else start + 60 * _MINUTES.value
  result: dict[str, object] = {**run(_SCHEDULES.value, _SEED.value, end)}
  result["seconds"] = round(time.perf_counter() - start, 1)
  result["first_seed"] = _SEED.value
  for name, value in result.items():
    print(f"{name}: {value}")
  if _OUTPUT.value:
    record.write_result(_OUTPUT.value, result)
  sys.exit(1 if result["differing_bits"] else 0)


if __name__ == "__main__":
  app.run(main)
