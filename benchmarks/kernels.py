"""Times every operation in each implementation, side by side in one process.

    python -m benchmarks.kernels --output=benchmarks/results/kernels_cpu.json
    python -m benchmarks.kernels --tune

Runs of one case take turns, and ratios are those of runs that stand next to one
another. On an NVIDIA GPU the Mosaic kernel, the XLA form and, for the gated
delta rule, flash-linear-attention's Triton kernel run; on a CPU the XLA form.
Captures are timed against none in the same turns. `--tune` tries the sizes that
each implementation lists for a case and prints the best.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import kernels_fla, record
from benchmarks.command_line import one_sentence, whole_numbers, writable
from benchmarks.device import kernel_times
from benchmarks.kernel_cases import (
  CHUNK,
  IMPLEMENTATIONS,
  OPERATIONS,
  Call,
  Case,
  make,
)
from sparse_prefix_jax.kernels import implementations

_OPERATIONS = flags.DEFINE_list("operations", list(OPERATIONS), "Which.")
_REQUESTS = flags.DEFINE_list("requests", ["1", "4", "16"], "Per call.")
_TOKENS = flags.DEFINE_list(
  "tokens", ["512", "2048", "8192", "16384"], "Per request."
)
_HEADS = flags.DEFINE_list("heads", ["16", "32"], "Value heads.")
_CAPTURES = flags.DEFINE_list("captures", ["0", "1", "8"], "States captured.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Inputs.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed turns.", 1)
_CALLS = flags.DEFINE_integer(
  "calls", 1, "Calls of a turn: more than one hides the time of a launch.", 1
)
_MOST = flags.DEFINE_integer(
  "most_tokens", 65536, "Cases of more tokens in all are left out.", 1
)
_XLA = flags.DEFINE_bool("xla", True, "XLA's form too, if a kernel fits.")
_TUNE = flags.DEFINE_bool("tune", False, "Try sizes, print the best.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

Run: TypeAlias = Callable[..., Any]
"""Calls an operation as often as it is told and waits for the last result."""

_APART = 2e-2
"""Of the largest number: what bfloat16 products may differ by."""


def cases() -> list[Case]:
  """All combinations of the flags, and none captured, to compare with.

  Attention captures nothing.

  Raises:
    ValueError: A flag out of range.
  """
  for name in _OPERATIONS.value:
    if name not in OPERATIONS:
      raise ValueError(
        f"--operations holds {name!r}; it knows {', '.join(OPERATIONS)}"
      )
  on_gpu = jax.default_backend() == "gpu"
  dtype = _DTYPE.value or ("bfloat16" if on_gpu else "float32")
  combinations = itertools.product(
    _OPERATIONS.value,
    whole_numbers(_REQUESTS),
    whole_numbers(_TOKENS, least=CHUNK, multiple_of=CHUNK),
    whole_numbers(_HEADS),
    sorted({0, *whole_numbers(_CAPTURES, least=0)}),
  )
  made = itertools.starmap(functools.partial(Case, dtype=dtype), combinations)
  found = [
    case
    for case in made
    if case.requests * case.tokens <= _MOST.value
    and case.captures <= case.tokens // CHUNK
    and not (case.operation == "lattice_attention" and case.captures)
  ]
  if not found:
    raise ValueError(
      f"no case is left: requests x tokens is above {_MOST.value} "
      "(--most_tokens), or there are more captures than chunks"
    )
  return found


def ours(call: Call, case: Case, choice: Any) -> Run:
  """Our operation as a function that returns its result when it is there."""
  run = jax.jit(
    functools.partial(call.run, implementation=choice), donate_argnums=1
  )
  chunks = case.chunks()
  held = {"pools": jax.tree.map(lambda x: x + 0, call.pools)}

  def several(calls: int = 1) -> Any:
    out = None
    for _ in range(calls):
      out, held["pools"] = run(call.inputs, held["pools"], chunks)
    return jax.block_until_ready((out, held["pools"]))

  return several


def contenders(case: Case, call: Call) -> dict[str, Run]:
  """Whoever can run a case on this machine, by name.

  Raises:
    AssertionError: Two of them compute different things.
  """
  found, results = {}, {}
  for name in ("mosaic_gpu", "mosaic_tpu", "xla"):
    if name == "xla" and found and not _XLA.value:
      continue
    run = ours(call, case, name)
    try:
      results[name] = jax.tree.map(np.asarray, run())
    except implementations.DoesNotFit:  # not a contender
      continue
    found[name] = run
  if kernels_fla.unavailable(case) is None:
    run = kernels_fla.prepare(case, call)
    results["flash_linear_attention"] = kernels_fla.as_ours(case, run())
    found["flash_linear_attention"] = run
    found["flash_linear_attention_graph"] = kernels_fla.graphed(run)
  *_, expected = results
  for name, result in results.items():
    _agree(name, result, expected, results[expected])
  return found


def _agree(name: str, result: Any, other: str, expected: Any) -> None:
  """Whether two contenders compute the same, to the digits of bfloat16."""
  pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
  for x, y in pairs:
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    apart = np.max(np.abs(x - y)) / np.max(np.abs(y))
    if not apart <= _APART:
      raise AssertionError(
        f"{name} is {apart:.1e} from {other}, above {_APART}"
      )


def take_turns(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
  """Seconds of every run, in turns; the first turn warms up."""
  calls = _CALLS.value
  times: dict[str, list[float]] = {name: [] for name in runs}
  for turn in range(repeats + 1):
    for name, run in runs.items():
      start = time.perf_counter()
      run(calls=calls)
      if turn:
        times[name].append((time.perf_counter() - start) / calls)
  return times


def _repeated(function: Callable[..., Any], *inputs: Any, calls: int) -> Any:
  return jax.block_until_ready([function(*inputs) for _ in range(calls)][-1])


@functools.cache
def limits(dtype: str) -> dict[str, float]:
  """Measured here: operations per second of a product, bytes of a copy."""
  # Large enough that a launch is nothing beside it.
  size, length = 8192 if jax.default_backend() == "gpu" else 2048, 1 << 26
  x = jnp.ones((size, size), dtype)
  long = jnp.ones(length, jnp.float32)
  product = jax.jit(
    functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  )
  move = jax.jit(lambda x: x + 1)
  times = take_turns(
    {
      "product": functools.partial(_repeated, product, x, x),
      "copy": functools.partial(_repeated, move, long),
    },
    5,
  )
  return {
    "flops_per_second": 2 * size**3 / min(times["product"]),
    "bytes_per_second": 8 * length / min(times["copy"]),
  }


def measure(group: list[Case]) -> Iterator[dict[str, Any]]:
  """Cases that differ only in their captures, all contenders in turns."""
  calls = {case: make(case) for case in group}
  runs = {
    (case, name): run
    for case, call in calls.items()
    for name, run in contenders(case, call).items()
  }
  named = {f"{case.captures}/{name}": run for (case, name), run in runs.items()}
  times = take_turns(named, _REPEATS.value)
  roof = limits(group[0].dtype)
  for (case, name), own in zip(runs, times.values(), strict=True):
    call, seconds = calls[case], statistics.median(own)
    plain = times[f"{group[0].captures}/{name}"]
    xla = times.get(f"{case.captures}/xla")
    yield {
      **case._asdict(),
      "implementation": name,
      "median_seconds": seconds,
      "of_matrix_limit": call.flops / seconds / roof["flops_per_second"],
      "of_memory_limit": call.moved / seconds / roof["bytes_per_second"],
      "captures_cost": _ratio(own, plain),
      "times_as_fast_as_xla": None if xla is None else _ratio(xla, own),
      "kernel_seconds": _alone(runs[case, name], name),
    }


def _alone(run: Run, name: str) -> float | None:
  """Seconds of the kernels of one of our calls, by the profiler of a GPU."""
  if jax.default_backend() != "gpu" or name.startswith("flash"):
    return None
  calls = _CALLS.value
  kernels = kernel_times.kernel_seconds(lambda: run(calls=calls))
  return sum(map(sum, kernels.values())) / calls


def _ratio(above: list[float], below: list[float]) -> float:
  """Median of the ratios of neighbours."""
  return statistics.median(x / y for x, y in zip(above, below))


def sizes_to_try(case: Case) -> Iterator[implementations.Config]:
  """Every combination of the sizes that the configs call tunable."""
  for kind in IMPLEMENTATIONS[case.operation]:
    names, values = kind.config.tunable.keys(), kind.config.tunable.values()
    for combination in itertools.product(*values):
      yield kind.config(**dict(zip(names, combination)))


def tune(case: Case) -> Iterator[dict[str, Any]]:
  """All sizes that fit a case, best first; and what the heuristic takes."""
  call = make(case)
  runs: dict[str, Run] = {}
  for choice in (None, *sizes_to_try(case)):
    run, name = ours(call, case, choice), str(choice or "heuristic")
    try:
      run()
    except implementations.DoesNotFit:
      continue
    runs[name] = run
  times = take_turns(runs, _REPEATS.value)
  medians = {name: statistics.median(own) for name, own in times.items()}
  for name in sorted(medians, key=medians.__getitem__):
    yield {**case._asdict(), "config": name, "median_seconds": medians[name]}


def _line(row: Mapping[str, Any]) -> str:
  case = "{operation:21} {requests:3} x {tokens:6} {heads:3}".format(**row)
  seconds = f"{1e3 * row['median_seconds']:10.3f} ms"
  if "config" in row:
    return f"{case} {seconds}  {row['config']}"
  shares = (
    f"{row['of_matrix_limit']:7.1%} {row['of_memory_limit']:7.1%} "
    f"{row['captures_cost']:7.3f} {row['times_as_fast_as_xla'] or 0:7.2f}"
  )
  name = f"{row['captures']:3} {row['implementation']:22}"
  alone = f"{1e3 * (row['kernel_seconds'] or 0):8.3f} ms alone"
  return f"{case} {name} {seconds} {shares} {alone}"


def main(argv: list[str]) -> None:
  """Measures, prints a table, and keeps the result where it was asked for."""
  with one_sentence(argv):
    wanted = cases()
    writable(_OUTPUT)
  grouped = itertools.groupby(wanted, lambda case: case._replace(captures=0))
  groups = [list(group) for _, group in grouped]
  rows = []
  for group in tqdm(groups, unit="case"):
    found = map(tune, group) if _TUNE.value else [measure(group)]
    for row in itertools.chain.from_iterable(found):
      rows.append(row)
      tqdm.write(_line(row))
  device = jax.devices()[0]
  result = {
    "device": device.device_kind,
    "flash_linear_attention": kernels_fla.unavailable(wanted[0]) or "measured",
    "limits": {dtype: limits(dtype) for dtype in {c.dtype for c in wanted}},
    "rows": rows,
  }
  print(f"{device.device_kind}; limits measured here: {result['limits']}")
  print(f"flash-linear-attention: {result['flash_linear_attention']}")
  if _OUTPUT.value is not None:
    record.write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
