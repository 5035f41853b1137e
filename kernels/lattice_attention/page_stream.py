"""Pages of a sequence on their way through shared memory, for GPU kernels.

Some stages of pages are under way while one is reduced. The order is that of
the sequence, always.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from sparse_prefix_jax.kernels.mosaic_gpu.chunk import clear_padding
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, Ref


class PageStream(NamedTuple):
  """The pages of one program: from where, and into which buffers.

  Attributes:
    pools: Of keys and of values; or of latents, which are both. [p c hkv k]
    buffers: The pages under way of each pool. [stage c k]
    arrived: One barrier per stage, of one arrival per pool.
    find: The number of a page in its sequence -> its slot and the key head.
  """

  pools: Sequence[Ref]
  buffers: Sequence[Ref]
  arrived: Ref
  find: Callable[[Array], tuple[Array, Array]]

  @property
  def stages(self) -> int:
    """Pages under way at a time."""
    return self.buffers[0].shape[0]

  def begin(self, first: Array, stop: Array) -> None:
    """Starts the copies of the first pages of [first, stop)."""
    for stage in range(self.stages):
      pl.when(first + stage < stop)(
        functools.partial(self._load, first + stage, stage)
      )

  def reduce(
    self,
    first: Array,
    stop: Array,
    take: Callable[[Array, Array, Any], Any],
    carry: Any,
    part: tuple[Array, Array] | None = None,
  ) -> Any:
    """Takes the pages of [first, stop), which `begin` has begun, one by one.

    Args:
      first: The number of the first page.
      stop: The end of the pages.
      take: `(page, stage, carry)` -> carry, with the page in that stage.
      carry: What the first page begins with.
      part: Only the pages from the one number to before the other.

    Returns:
      The carry after the last page.
    """
    bounds = part or (first, stop)
    advance = functools.partial(self.take, first, stop, take)
    return lax.fori_loop(*bounds, advance, carry)

  def take(
    self,
    first: Array,
    stop: Array,
    use: Callable[[Array, Array, Any], Any],
    page: Array,
    carry: Any,
  ) -> Any:
    """Takes one page of [first, stop), which is the next in order.

    Args:
      first: The number of the first page.
      stop: The end of the pages.
      use: `(page, stage, carry)` -> carry, with the page in that stage.
      page: The number of the page.
      carry: What it begins with.

    Returns:
      The carry after the page.
    """
    stage = lax.rem(page - first, self.stages)
    plgpu.barrier_wait(self.arrived.at[stage])
    carry = use(page, stage, carry)
    plgpu.commit_smem()  # all have read this stage, before it is overwritten
    after = page + self.stages
    pl.when(after < stop)(functools.partial(self._load, after, stage))
    return carry

  def _load(self, page: Array, stage: Array | int) -> None:
    """Starts the copies of one page of each pool to a stage's buffers."""
    slot, head = self.find(page)
    for pool, buffer in zip(self.pools, self.buffers, strict=True):
      plgpu.copy_gmem_to_smem(
        pool.at[slot, :, head], buffer.at[stage], self.arrived.at[stage]
      )


def clear_absent(values: Ref, stage: Array, exist: Array) -> None:
  """Selects values behind those that exist to zero, 64 columns at a time.

  What stands there may be NaN, and 0 times it too.

  Args:
    values: Values of the pages under way. [stage c k]
    stage: The one that holds the last page.
    exist: How many of its tokens are there.
  """

  def clear() -> None:
    for start in range(0, values.shape[2], CHUNK):
      clear_padding(values.at[stage, :, pl.ds(start, CHUNK)], exist)

  pl.when(exist < CHUNK)(clear)
