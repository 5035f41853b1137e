"""Random schedules against cold runs: how many bits differ.

    python -m benchmarks.path_independence --schedules=10000

Half of the schedules run in float32, half in bfloat16; one in ten on chunks of
64 tokens with every rung of the ladder, the rest on chunks of 16, where a short
prompt crosses many lattice points. Prints schedules tried, bytes compared and
bits that differ; exits with 1 if one does.
"""

import sys
import time
from collections.abc import Iterator

from absl import app, flags
from flax import nnx
from tqdm import tqdm

from benchmarks import command_line, record
from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.contract import ColdRuns, Schedule

_SCHEDULES = flags.DEFINE_integer("schedules", 1000, "How many to try.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the first schedule.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_SHORT = {"chunk": 16, "ladder": (4, 8), "max_length": 256, "head_rows": 64}
_LONG = {"chunk": 64, "ladder": (1, 2, 4), "max_length": 1024, "head_rows": 64}
# Cold runs are kept for comparison; now and then they are dropped, with the
# model, so that weights vary too and memory stays bounded.
_PER_MODEL = 50


def _settings(schedules: int) -> Iterator[tuple[str, dict, int]]:
  """Dtype, configuration and number of schedules of each model."""
  done = 0
  while done < schedules:
    batch = done // _PER_MODEL
    dtype = ("float32", "bfloat16")[batch % 2]
    fields = _LONG if batch // 2 % 10 == 9 else _SHORT
    count = min(_PER_MODEL, schedules - done)
    yield dtype, fields, count
    done += count


def run(schedules: int, seed: int) -> dict:
  """Tries that many schedules; counts by dtype and chunk length."""
  counts: dict[str, dict[str, int]] = {}
  with tqdm(total=schedules, unit="schedule", mininterval=5) as progress:
    for dtype, fields, count in _settings(schedules):
      config = preset("tiny", dtype=dtype, **fields)
      longest = 10 * config.numerics.chunk
      cold = ColdRuns(HybridDecoder(config, rngs=nnx.Rngs(seed)), longest)
      kind = counts.setdefault(
        f"{dtype}, chunks of {config.numerics.chunk}",
        {"schedules": 0, "bytes_compared": 0, "differing_bits": 0},
      )
      for _ in range(count):
        schedule = Schedule(cold, seed, longest=longest)
        kind["differing_bits"] += schedule.run()
        kind["bytes_compared"] += schedule.compared
        kind["schedules"] += 1
        seed += 1
        progress.update()
  return counts


def main(argv: list[str]) -> None:
  """Runs, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  start = time.perf_counter()
  counts = run(_SCHEDULES.value, _SEED.value)
  result = {
    "schedules": sum(kind["schedules"] for kind in counts.values()),
    "bytes_compared": sum(kind["bytes_compared"] for kind in counts.values()),
    "differing_bits": sum(kind["differing_bits"] for kind in counts.values()),
    "seconds": round(time.perf_counter() - start, 1),
    "first_seed": _SEED.value,
    "by_kind": counts,
  }
  for name, kind in counts.items():
    print(name, kind)
  print(
    f"schedules tried {result['schedules']}, bytes compared "
    f"{result['bytes_compared']}, bits that differ {result['differing_bits']}"
  )
  if _OUTPUT.value:
    record.write_result(_OUTPUT.value, result)
  sys.exit(1 if result["differing_bits"] else 0)


if __name__ == "__main__":
  app.run(main)
