"""Compiles every kernel ahead of time, for devices that are not here.

    python -m benchmarks.aot --platforms=tpu --output=aot.json

Lowering a kernel says little; this makes the programs themselves. Each case has
a process of its own, because a compiler that fails may abort, and is compiled
twice, the second time with twice the slots. It is in place if its pools are
aliased to its results and its temporaries do not grow with the slots. (What is
captured is data: one program captures any subset.)
"""

import dataclasses
import functools
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from benchmarks import command_line, record
from benchmarks.aot_programs import PROGRAMS, Program, Shape
from sparse_prefix_jax.models.in_place import PoolProgram, kernel_format

_PLATFORMS = flags.DEFINE_list("platforms", ["tpu"], "Modules aot_*.py.")
_TARGETS = flags.DEFINE_list("targets", [], "Only these; all if empty.")
_OPERATIONS = flags.DEFINE_list("operations", [], "Only these; all if empty.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_AUTO = jax.sharding.AxisType.Auto


@dataclasses.dataclass(frozen=True)
class Case:
  """One program.

  Attributes:
    platform: Module aot_{platform}.py.
    target: One of its devices.
    operation: A key of `PROGRAMS`.
    width: Of a head; 0 where there are only channels.
    dtype: Of the inputs.
  """

  platform: str
  target: str
  operation: str
  width: int
  dtype: str


def _platform(name: str) -> Any:
  return importlib.import_module(f"benchmarks.aot_{name}")


def _cases() -> Iterator[Case]:
  """The programs asked for.

  Raises:
    ValueError: A name that is not known.
  """
  _known(_PLATFORMS, ("tpu", "cuda"))
  _known(_OPERATIONS, PROGRAMS)
  targets = [t for name in _PLATFORMS.value for t in _platform(name).TARGETS]
  _known(_TARGETS, targets)
  for name in _PLATFORMS.value:
    for target in _platform(name).TARGETS:
      if not _TARGETS.value or target in _TARGETS.value:
        yield from _cases_of(name, target)


def _cases_of(platform: str, target: str) -> Iterator[Case]:
  for operation in _OPERATIONS.value or PROGRAMS:
    for width in PROGRAMS[operation][1]:
      for dtype in ("float32", "bfloat16"):
        yield Case(platform, target, operation, width, dtype)


def _known(flag: Any, names: Collection[str]) -> None:
  for name in flag.value:
    if name not in names:
      raise ValueError(
        f"--{flag.name} has {name!r}; it knows {', '.join(names)}"
      )


def _compiled(case: Case, program: Program, slots: int) -> Any:
  """The executable, for pools of that many slots, as the library makes them."""
  platform = _platform(case.platform)
  mesh = Mesh(
    np.array([platform.device(case.target)]), ("x",), axis_types=(_AUTO,)
  )
  whole = NamedSharding(mesh, PartitionSpec())

  def placed(x: Shape) -> Shape:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

  def pool(x: Shape) -> Shape:
    if case.platform != "tpu":
      return placed(x)
    chosen = kernel_format(x.shape, x.dtype, whole) or whole
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chosen)

  pools = jax.tree.map(pool, program.pools(slots))
  run = functools.partial(program.run, implementation=platform.IMPLEMENTATION)
  compiled, arguments = program.compiled, (program.inputs, pools)
  if compiled is None:
    compiled = PoolProgram(run, results=lambda pools: (None, pools))
  else:
    arguments = run(*arguments)
  arguments = jax.tree.map(
    lambda x: placed(x) if x.sharding is None else x, arguments
  )
  with jax.set_mesh(mesh):
    traced = compiled.trace(*arguments)
    return traced.lower(lowering_platforms=(case.platform,)).compile()


def measure(case: Case) -> dict[str, Any]:
  """Compiles one case twice and says what its memory is."""
  program = PROGRAMS[case.operation][0](case.width, jnp.dtype(case.dtype))
  slots = program.pool_bytes // _bytes(program.pools(1))
  start = time.perf_counter()
  memory = _compiled(case, program, slots).memory_analysis()
  seconds = time.perf_counter() - start
  twice = _compiled(case, program, 2 * slots).memory_analysis()
  pool_bytes = _bytes(program.pools(slots))
  growth = twice.temp_size_in_bytes - memory.temp_size_in_bytes
  aliased = memory.alias_size_in_bytes >= pool_bytes
  return {
    "compile_seconds": round(seconds, 2),
    "pool_bytes": pool_bytes,
    "alias_bytes": memory.alias_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "growth_bytes": growth,
    "in_place": aliased and growth < pool_bytes // 1000,
  }


def _bytes(shapes: Any) -> int:
  leaves = jax.tree.leaves(shapes)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


_ONE_CASE = "import sys; from benchmarks import aot; aot.report(sys.argv[1])"
"""The program of a case's process."""


def report(case: str) -> None:
  """Prints `measure` of a case, both as JSON."""
  print(json.dumps(measure(Case(**json.loads(case)))))


def _in_a_process(case: Case) -> dict[str, Any]:
  """`measure`, wherever that ends: an abort is a result too."""
  text = json.dumps(dataclasses.asdict(case))
  done = subprocess.run(
    [sys.executable, "-c", _ONE_CASE, text],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      **_platform(case.platform).ENVIRONMENT,
    },
    capture_output=True,
    text=True,
  )
  if done.returncode == 0:
    return json.loads(done.stdout.splitlines()[-1])
  telling = ("Error", "does not fit")
  lines = done.stderr.splitlines()
  told = [line for line in lines if any(word in line for word in telling)]
  why = told[-1] if told else f"exit code {done.returncode}"
  refused = "does not fit" in why  # a kernel's word, not a compiler's
  return {"in_place": False, "refused": refused, "error": why[:300]}


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
    result = _in_a_process(case)
    tqdm.write(_row(case, result))
    results.append({**dataclasses.asdict(case), **result})
  if _OUTPUT.value is not None:
    record.write_result(_OUTPUT.value, {"programs": results})
  good = sum(result["in_place"] for result in results)
  refused = sum(result.get("refused", False) for result in results)
  print(
    f"{good} of {len(results) - refused} programs compiled and work in place; "
    f"{refused} more are not for their kernel, which says why."
  )


if __name__ == "__main__":
  app.run(main)
