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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from benchmarks import record
from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d
from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.diagonal_scan import diagonal_scan
from sparse_prefix_jax.kernels.gated_delta_rule import gated_delta_rule
from sparse_prefix_jax.kernels.kimi_delta_attention import kimi_delta_attention
from sparse_prefix_jax.kernels.lattice_attention import lattice_attention
from sparse_prefix_jax.kernels.linear_attention import linear_attention

_PLATFORMS = flags.DEFINE_list("platforms", ["tpu"], "Modules aot_*.py.")
_TARGETS = flags.DEFINE_list("targets", [], "Only these; all if empty.")
_OPERATIONS = flags.DEFINE_list("operations", [], "Only these; all if empty.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")
_CASE = flags.DEFINE_string("case", None, "For a subprocess: one case, JSON.")

Shape: TypeAlias = jax.ShapeDtypeStruct

_AUTO = jax.sharding.AxisType.Auto
_POOL_BYTES = 2**28  # no fast memory holds a copy of it unseen
_CHUNKS, _TOKENS, _HEADS, _VALUE_HEADS = 8, 64, 4, 8
_CHANNELS, _STATES, _WINDOW, _KEY_HEADS = 2048, 16, 4, 2


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


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled: `run(inputs, pools, implementation=)`, pools donated.

  Attributes:
    run: The operation.
    inputs: Shapes of what it reads.
    slot: Shape of one slot of each pool.
    pools: Number of pools.
    dtype: Of the pools.
  """

  run: Callable[..., Any]
  inputs: Any
  slot: tuple[int, ...]
  pools: int
  dtype: Any


def _float32(*shape: int) -> Shape:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _chunks() -> Chunks:
  return jax.eval_shape(lambda: Chunks(*jnp.zeros((5, _CHUNKS), jnp.int32)))


def _packed(operation: Callable[..., Any], *inputs: Shape) -> Program:
  """An operation on states [s hv k v], inputs in its order."""

  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    *arrays, chunks = inputs
    out, pool = operation(*arrays, *pools, chunks, **options)
    return out, (pool,)

  slot = _VALUE_HEADS, inputs[0].shape[3], inputs[2].shape[3]
  return Program(run, (*inputs, _chunks()), slot, 1, jnp.float32)


def _heads(width: int, dtype: Any) -> tuple[Shape, Shape, Shape]:
  """q, k and v."""
  lead = _CHUNKS, _TOKENS
  key = jax.ShapeDtypeStruct((*lead, _HEADS, width), dtype)
  value = jax.ShapeDtypeStruct((*lead, _VALUE_HEADS, width), dtype)
  return key, key, value


_GATE = _float32(_CHUNKS, _TOKENS, _VALUE_HEADS)


def _delta(width: int, dtype: Any) -> Program:
  return _packed(gated_delta_rule, *_heads(width, dtype), _GATE, _GATE)


def _kimi(width: int, dtype: Any) -> Program:
  decay = _float32(*_GATE.shape, width)
  return _packed(kimi_delta_attention, *_heads(width, dtype), decay, _GATE)


def _linear(width: int, dtype: Any) -> Program:
  return _packed(linear_attention, *_heads(width, dtype), _GATE)


def _convolution(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    x, weight, chunks = inputs
    out, pool = causal_conv1d(x, weight, pools[0], chunks, **options)
    return out, (pool,)

  x = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _CHANNELS), dtype)
  weight = jax.ShapeDtypeStruct((_WINDOW, _CHANNELS), dtype)
  slot = _WINDOW - 1, _CHANNELS
  return Program(run, (x, weight, _chunks()), slot, 1, dtype)


def _scan(width: int, dtype: Any, selective: bool = False) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    x, log_decay, chunks, extra = inputs
    options |= extra
    y, pool = diagonal_scan(x, log_decay, pools[0], chunks, **options)
    return y, (pool,)

  x = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _CHANNELS), dtype)
  inputs = x, _float32(*x.shape), _chunks()
  if not selective:
    return Program(run, (*inputs, {}), (_CHANNELS,), 1, jnp.float32)
  b = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _STATES), dtype)
  extra = {"rate": _float32(_CHANNELS, _STATES), "b": b, "c": b}
  slot = _CHANNELS, _STATES
  return Program(run, (*inputs, extra), slot, 1, jnp.float32)


def _attention(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    q, k, v, *plan = inputs
    out, *pools = lattice_attention(q, k, v, *pools, *plan, **options)
    return out, tuple(pools)

  q = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _VALUE_HEADS, width), dtype)
  k = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _KEY_HEADS, width), dtype)
  table = jax.ShapeDtypeStruct((_CHUNKS, 64), jnp.int32)
  slot = _TOKENS, _KEY_HEADS, width
  return Program(run, (q, k, k, _chunks(), table), slot, 2, dtype)


PROGRAMS: dict[str, tuple[Callable[[int, Any], Program], Sequence[int]]] = {
  "gated_delta_rule": (_delta, (64, 128, 256)),
  "linear_attention": (_linear, (64, 128, 256)),
  "kimi_delta_attention": (_kimi, (64, 128, 256)),
  "causal_conv1d": (_convolution, (0,)),
  "diagonal_scan": (_scan, (0,)),
  "selective_scan": (functools.partial(_scan, selective=True), (0,)),
  "lattice_attention": (_attention, (64, 128, 256)),
}
"""How the program of each operation is made, and at which widths."""


def _platform(name: str) -> Any:
  return importlib.import_module(f"benchmarks.aot_{name}")


def _cases() -> Iterator[Case]:
  for name in _PLATFORMS.value:
    for target in _TARGETS.value or _platform(name).TARGETS:
      for operation in _OPERATIONS.value or PROGRAMS:
        for width in PROGRAMS[operation][1]:
          for dtype in ("float32", "bfloat16"):
            yield Case(name, target, operation, width, dtype)


def _compiled(case: Case, program: Program, slots: int) -> Any:
  """The executable, for pools of that many slots, laid out row by row."""
  platform = _platform(case.platform)
  mesh = Mesh(
    np.array([platform.device(case.target)]), ("x",), axis_types=(_AUTO,)
  )
  whole = NamedSharding(mesh, PartitionSpec())
  rows = Format(Layout(tuple(range(1 + len(program.slot)))), whole)
  # By default rows that do not fill the lanes of a TPU are laid out in another
  # order, in which no kernel can read them.
  narrow = case.platform == "tpu" and program.slot[-1] == 64
  pool = jax.ShapeDtypeStruct(
    (slots, *program.slot), program.dtype, sharding=rows if narrow else whole
  )

  def placed(x: Shape) -> Shape:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

  run = functools.partial(program.run, implementation=platform.IMPLEMENTATION)
  jitted = jax.jit(
    run,
    donate_argnums=1,
    out_shardings=(None, (rows,) * program.pools) if narrow else None,
  )
  with jax.set_mesh(mesh):
    traced = jitted.trace(
      jax.tree.map(placed, program.inputs), (pool,) * program.pools
    )
    return traced.lower(lowering_platforms=(case.platform,)).compile()


def measure(case: Case) -> dict[str, Any]:
  """Compiles one case twice and says what its memory is."""
  program = PROGRAMS[case.operation][0](case.width, jnp.dtype(case.dtype))
  slot_bytes = math.prod(program.slot) * jnp.dtype(program.dtype).itemsize
  slots = _POOL_BYTES // slot_bytes
  start = time.perf_counter()
  memory = _compiled(case, program, slots).memory_analysis()
  seconds = time.perf_counter() - start
  twice = _compiled(case, program, 2 * slots).memory_analysis()
  pool_bytes = program.pools * slots * slot_bytes
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


def _in_a_process(case: Case) -> dict[str, Any]:
  """`measure`, wherever that ends: an abort is a result too."""
  text = json.dumps(dataclasses.asdict(case))
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.aot", f"--case={text}"],
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
  told = [line for line in done.stderr.splitlines() if "Error" in line]
  why = told[-1] if told else f"exit code {done.returncode}"
  return {"in_place": False, "error": why[:300]}


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
  del argv
  if _CASE.value is not None:
    print(json.dumps(measure(Case(**json.loads(_CASE.value)))))
    return
  columns = ("seconds", "pool MiB", "alias MiB", "temp MiB", "growth MiB")
  print(" " * 44, " ".join(f"{x:>9}" for x in columns))
  results = []
  for case in tqdm(list(_cases()), unit="program"):
    result = _in_a_process(case)
    tqdm.write(_row(case, result))
    results.append({**dataclasses.asdict(case), **result})
  if _OUTPUT.value is not None:
    record.write_result(_OUTPUT.value, {"programs": results})
  good = sum(result["in_place"] for result in results)
  print(f"{good} of {len(results)} programs compiled and work in place.")


if __name__ == "__main__":
  app.run(main)
