"""Programs compiled ahead of time, each in a process of its own.

A process, because a compiler that fails may abort, and because it reads its
options once. What a target is, is said by `aot_tpu` and `aot_cuda`.
"""

import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.aot_program import Program, Shape
from benchmarks.aot_programs import PROGRAMS
from sparse_prefix_jax.kernels.implementations import Choice
from sparse_prefix_jax.runtime.in_place import PoolProgram, kernel_format

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


def platform_of(name: str) -> Any:
  """The module that knows the devices of a platform."""
  return importlib.import_module(f"benchmarks.aot_{name}")


def program_of(case: Case) -> Program:
  """The program that a case compiles."""
  return PROGRAMS[case.operation][0](case.width, jnp.dtype(case.dtype))


def compiled(
  case: Case,
  slots: int,
  choice: Choice = None,
  program: Program | None = None,
) -> Any:
  """The executable, its pools as the library makes them.

  Args:
    case: What to compile, and what for.
    slots: Of each pool.
    choice: Implementation; None asks for the kernels of the platform.
    program: To compile in place of that of the case; None for that one.
  """
  platform = platform_of(case.platform)
  program = program or program_of(case)
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
  run = functools.partial(
    program.run, implementation=choice or platform.IMPLEMENTATION
  )
  jitted, arguments = program.compiled, (program.inputs, pools)
  if jitted is None:
    jitted = PoolProgram(run, results=lambda pools: (None, pools))
  else:
    arguments = run(*arguments)
  arguments = jax.tree.map(
    lambda x: placed(x) if x.sharding is None else x, arguments
  )
  with jax.set_mesh(mesh):
    traced = jitted.trace(*arguments)
    return traced.lower(lowering_platforms=(case.platform,)).compile()


_IN_A_PROCESS = """
import importlib, json, sys
module, arguments = sys.argv[1:]
result = importlib.import_module(module).measure(**json.loads(arguments))
print(json.dumps(result))
"""


def in_a_process(
  module: str, arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
  """The result of `measure` of a module; an abort is a result too.

  Args:
    module: With a function of that name, whose arguments and result are JSON.
    arguments: By name.
    environment: Variables to add.

  Returns:
    What it returns; or `error`, the words that tell most, and `refused`,
    whether they are a kernel's and not a compiler's.
  """
  call = module, json.dumps(arguments)
  done = subprocess.run(
    [sys.executable, "-c", _IN_A_PROCESS, *call],
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
  )
  if done.returncode == 0:
    return json.loads(done.stdout.splitlines()[-1])
  telling = ("Error", "does not fit")
  lines = done.stderr.splitlines()
  told = [line for line in lines if any(word in line for word in telling)]
  why = told[-1] if told else f"exit code {done.returncode}"
  return {"refused": "does not fit" in why, "error": why[:300]}
