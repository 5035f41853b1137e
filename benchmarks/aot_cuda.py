"""GPUs that programs are compiled for, on a machine that has none.

Needs `pip install jax[cuda12]`, which brings the compiler: kernels go all the
way to machine code of sm_90a and sm_100a (products for a B200 from JAX 0.11
on), so layouts, shared memory and registers are checked as they are where the
device is. With MOSAIC_GPU_DUMP_PTXAS=1 in the environment the compiler prints
registers and spills of every kernel.
"""

from typing import Any

from jax.experimental import topologies

IMPLEMENTATION = "mosaic_gpu"
"""What every operation is asked for."""

TARGETS = {
  "h100": ("NVIDIA H100 80GB HBM3", 9, 132, 3_352_320_000_000, 80),
  "b200": ("NVIDIA B200", 10, 148, 7_672_000_000_000, 180),
}
"""Of each target: name, major compute capability, multiprocessors, bytes per
second and GiB of memory."""

ENVIRONMENT: dict[str, str] = {}
"""Variables of a compiling process: it needs none."""


def written_to(folder: str) -> dict[str, str]:
  """Variables with which a compiler writes the PTX of kernels to a folder."""
  return {"MOSAIC_GPU_DUMP_TO": folder, "MOSAIC_GPU_DUMP_PTX": "1"}


_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 1 patch: 0 }}
device_description_str: "{name}"
"""


def device(target: str) -> Any:
  """A device of the target, as far as a compiler needs one.

  Args:
    target: A key of `TARGETS`.
  """
  name, major, cores, bandwidth, memory = TARGETS[target]
  description = _DESCRIPTION.format(
    name=name,
    major=major,
    cores=cores,
    bandwidth=bandwidth,
    memory=memory * 2**30,
  )
  topology = topologies.get_topology_desc(
    platform="cuda",
    topology_name=target,
    target_config=description,
    topology="1x1x1",
  )
  return topology.devices[0]
