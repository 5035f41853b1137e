"""The GPUs that the kernels are written for, and how these differ.

Copies, barriers and shared memory are those of Hopper, and Blackwell has them
too. Products are not: Hopper has products of a whole warpgroup that read shared
memory (wgmma), and no device after it. Every device has those of single warps
(mma), which read registers.
"""

from typing import NamedTuple

from jax.experimental.pallas import mosaic_gpu as plgpu

from sparse_prefix_jax.kernels.implementations import Config, Device


class Gpu(NamedTuple):
  """What kernels ask about a GPU.

  Attributes:
    multiprocessors: How many programs run at the same time, at least.
    warpgroup_products: Whether it has wgmma.
  """

  multiprocessors: int
  warpgroup_products: bool


HOPPER = Gpu(132, True)
"""Also what the interpreter is taken for."""
BLACKWELL = Gpu(148, False)

_BY_NAME = {
  "H100": HOPPER,
  "H200": HOPPER,
  "H800": HOPPER,
  "GH200": HOPPER,
  "H20": HOPPER._replace(multiprocessors=78),
  "B100": BLACKWELL,
  "B200": BLACKWELL,
  "GB200": BLACKWELL,
  "B300": BLACKWELL._replace(multiprocessors=160),
  "GB300": BLACKWELL._replace(multiprocessors=160),
}


def known(device: Device) -> Gpu | None:
  """The GPU that a device is, by a word of its kind, or None."""
  found = (_BY_NAME[x] for x in device.kind.split() if x in _BY_NAME)
  return next(found, None)


def gpu_of(device: Device) -> Gpu:
  """Likewise; what is no such GPU can only be the interpreter's machine."""
  return known(device) or HOPPER


def refused_device(
  device: Device, config: Config, *, products: bool
) -> str | None:
  """Why `device` cannot run a kernel, or None.

  Args:
    device: What the program is made for.
    config: With an interpreter, any device will do.
    products: Whether the kernel has any.
  """
  if config.interpret is not None:
    return None
  gpu = known(device)
  if gpu is None:
    names = ", ".join(_BY_NAME)
    return f"is written for {names}, and this is a {device.kind}"
  by_warps = products and not gpu.warpgroup_products
  if by_warps and not hasattr(plgpu, "mma"):
    return f"needs JAX 0.11 for the products of a {device.kind} (mma)"
  return None
