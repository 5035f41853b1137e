"""What kernels take on the device, out of the profiler's own record.

A clock of the host times launches too, and where kernels take microseconds,
nothing else. The profiler of JAX writes down when each kernel began and ended.
"""

import collections
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

_TOLD = 12


def kernel_seconds(run: Callable[[], Any]) -> dict[str, list[float]]:
  """Seconds of each kernel that `run` launches, in their order, by name.

  On a CPU they are those of XLA's operations, which may run inside one another.

  Args:
    run: What is profiled; it has run before, or its compiler is profiled too,
      and it returns arrays.

  Raises:
    RuntimeError: The profiler recorded none.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(run())
    (record,) = Path(folder).rglob("*.xplane.pb")
    found: dict[str, list[float]] = collections.defaultdict(list)
    for name, seconds in _events(str(record)):
      found[name].append(seconds)
  if not found:
    raise RuntimeError("the profiler recorded no kernel on this device")
  return dict(found)


def told(kernels: Mapping[str, Sequence[float]], calls: int) -> dict[str, Any]:
  """What kernels take of a call, and which of them the most.

  Args:
    kernels: As `kernel_seconds` found them, of several calls.
    calls: How many these were.
  """
  most = sorted(kernels, key=lambda name: -sum(kernels[name]))[:_TOLD]
  return {
    "kernel_seconds": sum(map(sum, kernels.values())) / calls,
    "kernels": sum(map(len, kernels.values())) / calls,
    "longest": [
      {
        "kernel": name,
        "calls": len(kernels[name]) / calls,
        "seconds": sum(kernels[name]) / calls,
      }
      for name in most
    ],
  }


def _events(path: str) -> Iterator[tuple[str, float]]:
  """Name and seconds of all that ran on the device."""
  device, on_cpu = "/device:GPU", jax.default_backend() == "cpu"
  for plane in jax.profiler.ProfileData.from_file(path).planes:
    if not plane.name.startswith("/host:CPU" if on_cpu else device):
      continue
    for line in plane.lines:
      # Beside the streams, a device's record holds sums over them.
      if not on_cpu and not (line.name or "").startswith("Stream"):
        continue
      for event in line.events:
        if not on_cpu or "hlo_op" in dict(event.stats):
          yield str(event.name), event.duration_ns / 1e9
