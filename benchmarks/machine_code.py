"""Counts in the machine code of the GPU kernels, without a device.

    python -m benchmarks.machine_code --output=machine_code.json
    python -m benchmarks.machine_code --check

Where no GPU can be had to time a kernel, its instructions can be counted: those
of its main loop (one chunk, one page), registers, what is spilled, waits for
products, barriers. Every program is compiled for an H100 as `benchmarks.aot`
compiles it, in bfloat16, and the kernels in it are disassembled. Of the program
itself it counts the kernels that it launches, of a step of a recurrence how
often the states pass, and of a prefill the sums of programs of fewer chunks
that the program of most of them does not have: they would have other bits.

`--check` compares with the counts that are kept and with the limits of
`machine_code_limits`, and fails where one is above. Counts belong to a version
of JAX and of the assembler, which made them.

Needs `pip install '.[cuda12,disassembler]'`: the compiler and a disassembler.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import app, flags
from tqdm import tqdm

from benchmarks import (
  aot_models,
  command_line,
  machine_code_hlo,
  machine_code_limits,
  machine_code_sass,
  record,
)
from benchmarks.aot_compile import (
  Case,
  compiled,
  in_a_process,
  program_of,
)
from benchmarks.aot_programs import PROGRAMS
from benchmarks.machine_code_limits import RECURRENT_STEPS
from sparse_prefix_jax.kernels.chunks import GPU_ROWS

_KEPT = Path(__file__).parent / "results" / "machine_code.json"
_TARGET = "h100"
_SLOTS = 64
_ROWS = 16
_FEWER = (1, 2, 4)
"""Chunks of the programs whose sums must be those of the whole group's."""
_NARROW = 64
"""A product of fewer columns than that is not a wide one."""
_OPERATIONS = tuple(x for x in PROGRAMS if machine_code_limits.is_counted(x))

_CHECK = flags.DEFINE_bool(
  "check", False, "Fail where a count is above the kept ones, or a limit."
)
_COUNTED = flags.DEFINE_string(
  "counted", None, "JSON of an earlier --output, in place of compiling."
)
_CHOSEN = flags.DEFINE_list("operations", [], "Only these; all if empty.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def disassembler() -> Path:
  """The folder with `bin/nvdisasm` in it, which the compiler is told.

  Raises:
    ImportError: There is none.
  """
  found = shutil.which("nvdisasm")
  if found is not None:
    return Path(found).parent.parent
  triton = importlib.util.find_spec("triton")
  if triton is None or triton.origin is None:
    raise ImportError(
      "nvdisasm is not found; pip install '.[disassembler]' brings it"
    )
  return Path(triton.origin).parent / "backends" / "nvidia"


def measure(folder: str, tools: str, **fields: Any) -> dict[str, Any]:
  """Compiles one case and counts in what the compiler wrote of its kernels.

  Args:
    folder: Where the compiler was told to write.
    tools: The folder of `disassembler`.
    **fields: Of the case.
  """
  case = Case(**fields)
  # Not in the environment of the process: JAX overwrites it when imported.
  os.environ["MOSAIC_GPU_CUDA_ROOT"] = tools
  text = compiled(case, _SLOTS).as_text()
  # The kernels of a layer group are those of its operations.
  whole = case.operation.startswith("layer_group_")
  return {
    "program": _program_counts(case, text),
    "kernels": {} if whole else _kernel_counts(Path(folder)),
  }


def _program_counts(case: Case, text: str) -> dict[str, int]:
  """Counts the kernels of a program and, where it has them, other things."""
  found = machine_code_hlo.kernels(text)
  counts = machine_code_hlo.counts(found)
  if case.operation in RECURRENT_STEPS:
    (pool,) = program_of(case).pools(1)
    # A state of a number per channel is no larger than a row of an input.
    least = _SLOTS if len(pool.shape) == 2 else _ROWS
    counts["state_passes"] = machine_code_hlo.passes(
      found, least * math.prod(pool.shape)
    )
  if case.operation == "layer_group_decode":
    layers = 4  # of attention and of Gated DeltaNet, each with its SwiGLU
    others = len(machine_code_hlo.others(found, _NARROW))
    counts["others_per_layer"] = -(-others // layers)
  if case.operation == "layer_group_prefill":
    counts |= machine_code_hlo.launches(found)
    counts["other_sums"] = sum(
      machine_code_hlo.other_sums(fewer, text, GPU_ROWS)
      for fewer in _prefills(case)
    )
  return counts


def _prefills(case: Case) -> Iterator[str]:
  """The programs of fewer chunks, as text."""
  for chunks in _FEWER:
    program = aot_models.layer_group_prefill(jnp.dtype(case.dtype), chunks)
    yield compiled(case, _SLOTS, program=program).as_text()


def _kernel_counts(folder: Path) -> dict[str, dict[str, int]]:
  """Counts in each kernel of a program; of copies of one, in the first."""
  kernels: dict[str, dict[str, int]] = {}
  for report in sorted(folder.glob("*.ptxas"), key=_number):
    name = report.stem.rpartition("_")[0]
    (text,) = folder.glob(f"{report.stem}.sass*")
    counts = machine_code_sass.counts(text.read_text(), report.read_text())
    kernels.setdefault(name, counts)
  return kernels


def _number(report: Path) -> int:
  return int(report.stem.rpartition("_")[2])


def _cases() -> list[Case]:
  """The programs asked for.

  Raises:
    ValueError: A name that is not known.
  """
  command_line.known(_CHOSEN, _OPERATIONS)
  return [
    Case("cuda", _TARGET, operation, width, "bfloat16")
    for operation in _CHOSEN.value or _OPERATIONS
    for width in PROGRAMS[operation][1]
  ]


def assembler() -> str:
  """The version of the assembler, as it is looked for: of CUDA, or the wheel.

  Returns:
    Such as `13.0.88`, or `unknown`.
  """
  wheel = importlib.util.find_spec("nvidia")
  places = [Path("/usr/local/cuda")]
  for place in (wheel.submodule_search_locations or []) if wheel else []:
    places.append(Path(place) / "cuda_nvcc")
  for tool in (place / "bin" / "ptxas" for place in places):
    if tool.exists():
      done = subprocess.run([tool, "--version"], capture_output=True, text=True)
      found = re.search(r"V(\d+\.\d+\.\d+)", done.stdout)
      return found[1] if found else "unknown"
  return "unknown"


def _read(path: str | Path) -> tuple[str, list[dict[str, Any]]]:
  """What made the counts of a file, and they."""
  content = json.loads(Path(path).read_text(encoding="utf-8"))
  made = f"JAX {content['versions']['jax']}, ptxas {content['assembler']}"
  return made, content["programs"]


def _kept(compiler: str) -> list[dict[str, Any]]:
  """The counts that are kept.

  Args:
    compiler: What made the counts to compare.

  Raises:
    ValueError: Other versions made them.
  """
  made, kept = _read(_KEPT)
  if made != compiler:
    raise ValueError(
      f"the counts that are kept were made with {made}, not {compiler}"
    )
  return kept


def _measured(case: Case, tools: Path | None) -> dict[str, Any]:
  """`measure` in a process whose compiler writes what it makes to a folder."""
  fields = dataclasses.asdict(case)
  with tempfile.TemporaryDirectory() as folder:
    result = in_a_process(
      "benchmarks.machine_code",
      {"folder": folder, "tools": str(tools), **fields},
      {
        "MOSAIC_GPU_DUMP_TO": folder,
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "MOSAIC_GPU_DUMP_SASS": "1",
      },
    )
  return {**fields, **result}


def main(argv: list[str]) -> None:
  """Counts, prints a table, keeps the result where asked, and checks it."""
  with command_line.one_sentence(argv):
    cases, results = _cases(), None
    compiler = f"JAX {metadata.version('jax')}, ptxas {assembler()}"
    if _COUNTED.value is not None and (_OUTPUT.value or _CHOSEN.value):
      raise ValueError("--counted takes neither --output nor --operations")
    if _COUNTED.value is not None:
      compiler, results = _read(_COUNTED.value)
    kept = _kept(compiler) if _CHECK.value else []
    tools = disassembler() if results is None else None
    command_line.writable(_OUTPUT)
  if results is None:
    results = [_measured(case, tools) for case in tqdm(cases, unit="program")]
  print("\n".join(machine_code_limits.table_of_kernels(results)))
  print("\n".join(["", *machine_code_limits.table_of_programs(results)]))
  if _OUTPUT.value is not None:
    result = {"assembler": assembler(), "programs": results}
    record.write_result(_OUTPUT.value, result)
  told = machine_code_limits.above(results, kept) if _CHECK.value else []
  if told:
    sys.exit("\n".join(told))


if __name__ == "__main__":
  app.run(main)
