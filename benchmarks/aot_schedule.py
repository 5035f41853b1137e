"""Lengths of the schedules of the TPU kernels, by size of a grid step.

    python -m benchmarks.aot_schedule --output=aot_schedule.json

A TPU core issues one bundle of instructions a cycle, in the order in which the
compiler put them. Where no TPU can be had to time a kernel, the length of that
schedule is what can be known of a grid step: its cycles, but for waiting for
memory, and the body of an inner loop counted once. So sizes are compared with
one another, per head or channel, and with nothing else.

Needs `pip install jax[tpu]`, as `benchmarks.aot` does.
"""

import dataclasses
import itertools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from benchmarks import aot_tpu, command_line, record
from benchmarks.aot_compile import Case, compiled, in_a_process
from benchmarks.aot_programs import PROGRAMS
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config

_KERNELS = {
  "gated_delta_rule": "gated_delta_rule",
  "kimi_delta_attention": "kimi_delta_attention",
  "linear_attention": "linear_attention",
  "causal_conv1d": "causal_conv1d",
  "diagonal_scan": "diagonal_scan",
  "selective_scan": "diagonal_scan",
}
"""Programs whose steps have a size, and what a profile calls their kernel."""

_HEADS = 1, 2, 4, 8
_CHANNELS = 128, 256, 512, 1024, 2048
_SLOTS = 64

_TARGETS = flags.DEFINE_list("targets", list(aot_tpu.TARGETS), "Which TPUs.")
_OPERATIONS = flags.DEFINE_list("operations", list(_KERNELS), "Which.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "bfloat16", ["float32", "bfloat16"], "Of the inputs."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def _cases() -> Iterator[tuple[Case, int]]:
  """All that is asked for, with each size of a step.

  Raises:
    ValueError: A name that is not known.
  """
  command_line.known(_TARGETS, aot_tpu.TARGETS)
  command_line.known(_OPERATIONS, _KERNELS)
  for target, operation in itertools.product(_TARGETS.value, _OPERATIONS.value):
    for width in PROGRAMS[operation][1]:
      case = Case("tpu", target, operation, width, _DTYPE.value)
      yield from ((case, block) for block in (_HEADS if width else _CHANNELS))


def measure(block: int, folder: str, **fields: Any) -> dict[str, Any]:
  """Compiles one case and reads what the compiler wrote of its kernel.

  Args:
    block: Value heads or channels of a step.
    folder: Where the compiler was told to write.
    **fields: Of the case.
  """
  case = Case(**fields)
  compiled(case, _SLOTS, Config(block=block))
  pattern = f"*{_KERNELS[case.operation]}*schedule-analysis_final_bundles.txt"
  (report,) = Path(folder).glob(pattern)
  found = re.search(r"total scheduled bundles:\s+(\d+)", report.read_text())
  if found is None:
    raise ValueError(f"{report.name} does not count its bundles")
  bundles = int(found[1])
  # What is compared: a value head, or a register's width of channels.
  units = block if case.width else block // 128
  return {"bundles": bundles, "bundles_per_unit": round(bundles / units, 1)}


def _measured(case: Case, block: int) -> dict[str, Any]:
  """`measure` in a process that writes its schedules to a folder."""
  with tempfile.TemporaryDirectory() as folder:
    options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    return in_a_process(
      "benchmarks.aot_schedule",
      {"block": block, "folder": folder, **dataclasses.asdict(case)},
      {**aot_tpu.ENVIRONMENT, "LIBTPU_INIT_ARGS": options},
    )


def main(argv: list[str]) -> None:
  """Measures, prints a table, keeps the result where asked."""
  with command_line.one_sentence(argv):
    cases = list(_cases())
    command_line.writable(_OUTPUT)
  results = []
  for case, block in tqdm(cases, unit="program"):
    result = _measured(case, block)
    name = f"{case.target:6} {case.operation:21} {case.width:5}"
    told = result.get("error") or "{bundles:7} {bundles_per_unit:9}".format(
      **result
    )
    tqdm.write(f"{name} block {block:5} {told}")
    results.append({**dataclasses.asdict(case), "block": block, **result})
  if _OUTPUT.value is not None:
    record.write_result(_OUTPUT.value, {"schedules": results})


if __name__ == "__main__":
  app.run(main)
