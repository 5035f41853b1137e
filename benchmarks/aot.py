"""Compiles every kernel ahead of time, for devices that are not here.

    python -m benchmarks.aot --platforms=tpu --output=aot.json

Lowering a kernel says little; this makes the programs themselves. Each case has
a process of its own, because a compiler that fails may abort, and is compiled
twice, the second time with twice the slots. It is in place if its pools are
aliased to its results and its temporaries do not grow with the slots. (What is
captured is data: one program captures any subset.) Of kernels for GPUs it looks
in the text that goes to the assembler, too: nothing may read the result of a
product before the wait for it (`aot_ptx`).
"""

import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from tqdm import tqdm

from benchmarks import aot_ptx, command_line, record
from benchmarks.aot_compile import (
  Case,
  compiled,
  in_a_process,
  platform_of,
  program_of,
)
from benchmarks.aot_programs import PROGRAMS

_PLATFORMS = flags.DEFINE_list("platforms", ["tpu"], "Modules aot_*.py.")
_TARGETS = flags.DEFINE_list("targets", [], "Only these; all if empty.")
_OPERATIONS = flags.DEFINE_list("operations", [], "Only these; all if empty.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def _cases() -> Iterator[Case]:
  """The programs asked for.

  Raises:
    ValueError: A name that is not known.
  """
  command_line.known(_PLATFORMS, ("tpu", "cuda"))
  command_line.known(_OPERATIONS, PROGRAMS)
  targets = [t for name in _PLATFORMS.value for t in platform_of(name).TARGETS]
  command_line.known(_TARGETS, targets)
  for name in _PLATFORMS.value:
    for target in platform_of(name).TARGETS:
      if not _TARGETS.value or target in _TARGETS.value:
        yield from _cases_of(name, target)


def _cases_of(platform: str, target: str) -> Iterator[Case]:
  for operation in _OPERATIONS.value or PROGRAMS:
    for width in PROGRAMS[operation][1]:
      for dtype in ("float32", "bfloat16"):
        yield Case(platform, target, operation, width, dtype)


def measure(folder: str, **fields: Any) -> dict[str, Any]:
  """Compiles one case twice and says what its memory is.

  Args:
    folder: Where the compiler was told to write what `aot_ptx` reads.
    **fields: Of the case.
  """
  case = Case(**fields)
  program = program_of(case)
  # What keeps nothing has no slots, and in place it is whatever it does.
  slots = program.pool_bytes // max(1, _bytes(program.pools(1)))
  start = time.perf_counter()
  memory = compiled(case, slots).memory_analysis()
  seconds = time.perf_counter() - start
  unwaited = _unwaited_reads(Path(folder))
  twice = compiled(case, 2 * slots).memory_analysis()
  pool_bytes = _bytes(program.pools(slots))
  growth = twice.temp_size_in_bytes - memory.temp_size_in_bytes
  aliased = memory.alias_size_in_bytes >= pool_bytes
  return {
    "compile_seconds": round(seconds, 2),
    "pool_bytes": pool_bytes,
    "alias_bytes": memory.alias_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "growth_bytes": growth,
    "in_place": aliased and growth <= pool_bytes // 1000,
    "unwaited_reads": unwaited,
  }


def _unwaited_reads(folder: Path) -> int | None:
  """Reads before waits in what the compiler wrote; None if it wrote nothing."""
  texts = [path.read_text() for path in folder.glob("*.ptx")]
  return sum(len(aot_ptx.unwaited(text)) for text in texts) if texts else None


def _bytes(shapes: Any) -> int:
  leaves = jax.tree.leaves(shapes)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _measured(case: Case) -> dict[str, Any]:
  """`measure` in a process of its own."""
  platform = platform_of(case.platform)
  with tempfile.TemporaryDirectory() as folder:
    return in_a_process(
      "benchmarks.aot",
      {"folder": folder, **dataclasses.asdict(case)},
      {**platform.ENVIRONMENT, **platform.written_to(folder)},
    )


def _row(case: Case, result: dict[str, Any]) -> str:
  name = f"{case.target:6} {case.operation:21} {case.width:5} {case.dtype:9}"
  if "error" in result:
    return f"{name} {result['error']}"
  mebibytes = (
    f"{result[key] / 2**20:9.1f}"
    for key in ("pool_bytes", "alias_bytes", "temporary_bytes", "growth_bytes")
  )
  seconds = f"{result['compile_seconds']:8.1f}"
  verdict = "in place" if result["in_place"] else "COPIES"
  if result["unwaited_reads"]:
    verdict += f", {result['unwaited_reads']} READS BEFORE WAITS"
  return " ".join([name, seconds, *mebibytes, verdict])


def main(argv: list[str]) -> None:
  """Compiles every case, prints a table, keeps the result where asked."""
  with command_line.one_sentence(argv):
    cases = list(_cases())
    command_line.writable(_OUTPUT)
  columns = ("seconds", "pool MiB", "alias MiB", "temp MiB", "growth MiB")
  print(" " * 44, " ".join(f"{x:>9}" for x in columns))
  results = []
  for case in tqdm(cases, unit="program"):
    fields, result = dataclasses.asdict(case), _measured(case)
    tqdm.write(_row(case, result))
    results.append({**fields, "in_place": False, **result})
  if _OUTPUT.value is not None:
    record.write_result(_OUTPUT.value, {"programs": results})
  good = sum(result["in_place"] for result in results)
  refused = sum(result.get("refused", False) for result in results)
  print(
    f"{good} of {len(results) - refused} programs compiled and work in place; "
    f"{refused} more are not for their kernel, which says why."
  )
  reads = [result.get("unwaited_reads") for result in results]
  if any(reads):
    early = sum(x or 0 for x in reads)
    sys.exit(f"kernels read {early} results of products before their waits")
  if "cuda" in _PLATFORMS.value and not any(x == 0 for x in reads):
    sys.exit("the compiler wrote no kernel of a GPU that could be looked at")


if __name__ == "__main__":
  app.run(main)
