"""The GPUs that the kernels are written for, and how these differ.

Copies, barriers and shared memory are those of Hopper, and Blackwell has them
too. Products are not: Hopper has products of a whole warpgroup that read shared
memory (wgmma), and no device after it. Every device has those of single warps
(mma), which read registers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array
from jax.experimental.pallas import mosaic_gpu as plgpu

from sparse_prefix_jax.kernels.implementations import Config, Device


class Gpu(NamedTuple):
  """What kernels ask about a GPU.

  Attributes:
    multiprocessors: How many the largest of its kind has; a program runs on
      one.
    warpgroup_products: Whether it has wgmma.
  """

  multiprocessors: int
  warpgroup_products: bool


HOPPER = Gpu(132, True)
"""Hopper, which the interpreter is taken for too."""
BLACKWELL = Gpu(148, False)

SHARED_BYTES = 223 * 1024
"""Shared memory that the buffers of a program may take: 227 KiB, but for
barriers and scratch of the compiler. Both families have it."""

MOST_PROGRAMS = 65_535
"""Along one axis of a grid, but for the last."""

_INTERPRETER_HAS_MMA = False
"""Whether the interpreter has mma; tests put a substitute in its place."""

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
  """The GPU that a device is; where it is none, an interpreter runs there."""
  return known(device) or HOPPER


def refused_device(
  device: Device, config: Config, *, products: bool
) -> str | None:
  """Why `device` cannot run a kernel, or None.

  Args:
    device: What the program is made for.
    config: If it has an interpreter, any device without a kind of its own will
      do.
    products: Whether the kernel has matrix products.
  """
  gpu, interpreted = known(device), config.interpret is not None
  if gpu is None and not interpreted:
    names = ", ".join(_BY_NAME)
    return f"is written for {names}, and this is a {device.kind}"
  if gpu is None or gpu.warpgroup_products or not products:
    return None
  if interpreted:
    told = f"cannot interpret the products of a {device.kind} (mma)"
    return None if _INTERPRETER_HAS_MMA else told
  if not hasattr(plgpu, "mma"):
    return f"needs JAX 0.11 for the products of a {device.kind} (mma)"
  return None


def within_grid(
  refusal: Callable[..., str | None],
) -> Callable[..., str | None]:
  """The refusal of a kernel that has a program per chunk, or per row.

  An axis of a grid has a limit that a launch would stumble over.

  Args:
    refusal: `(device, config, *arguments)` -> why it does not fit, or None; the
      first argument is [n ...] or [b ...].

  Returns:
    A refusal that has counted them before.
  """

  @functools.wraps(refusal)
  def counted(
    device: Device, config: Config, first: Array, *rest: Any, **options: Any
  ) -> str | None:
    if first.shape[0] > MOST_PROGRAMS:
      return (
        f"takes {MOST_PROGRAMS} chunks or rows at most, not {first.shape[0]}"
      )
    return refusal(device, config, first, *rest, **options)

  return counted


def refused_sizes(stages: int, taken: int) -> str | None:
  """Why a program of these sizes cannot be, or None.

  Args:
    stages: Stages of loads.
    taken: The bytes of shared memory that the program takes.
  """
  if stages < 1:
    return f"takes one stage or more, not {stages}"
  if taken > SHARED_BYTES:
    return f"takes {taken} bytes of shared memory, and there are {SHARED_BYTES}"
  return None
