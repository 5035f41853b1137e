"""TPUs that programs are compiled for, on a machine that has none.

Needs `pip install jax[tpu]`, which brings the compiler.
"""

from typing import Any

from jax.experimental import topologies

IMPLEMENTATION = "mosaic_tpu"
"""What every operation is asked for."""

TARGETS = {
  "v5e": "v5e:2x2",
  "v5p": "v5p:2x2x1",
  "v6e": "v6e:2x2",
  "tpu7x": "tpu7x:2x2x1",
}
"""Topology of each target; one device of it is compiled for."""

ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
"""Variables of a compiling process: no machine is asked what it is, and none is
reserved."""


def written_to(folder: str) -> dict[str, str]:
  """Variables for what `benchmarks.aot` reads of kernels: nothing here."""
  del folder
  return {}


def device(target: str) -> Any:
  """A device of the target, as far as a compiler needs one."""
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name=TARGETS[target]
  )
  return topology.devices[0]
