"""The second kernel of lattice_attention_step on GPU: ranges in their order.

See `decode_mosaic_gpu.py`. With m, l and o of the ranges, in absolute order,

    m'' = max(m', m),  l'' = l' e^{m'-m''} + l e^{m-m''},
    o'' = o' e^{m'-m''} + o e^{m-m''}

number by number: m and l come as tiles, the same in every row.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.lattice_attention.ranges_mosaic_gpu import (
  Row,
  ranges_of,
)
from sparse_prefix_jax.kernels.mosaic_gpu.devices import SHARED_BYTES
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  as_accumulator,
  launch,
  new,
)

_MOST_STAGES = 8


def combine(
  out: Float32[Array, "b groups ranges v g"],
  sums: Float32[Array, "b groups ranges rows g"],
  row: Row,
  config: MosaicGpuConfig,
  name: str,
) -> Float32[Array, "b groups v g"]:
  """Combines the ranges of a row in their order, 64 channels a program.

  Args:
    out: o of each range.
    sums: m and l of each range.
    row: Which pages a row sees.
    config: Of the launch.
    name: What a profile calls the kernel.
  """
  b, groups, _, width, columns = out.shape
  room = SHARED_BYTES // (3 * 4 * CHUNK * columns)
  stages = min(_MOST_STAGES, room)
  buffers = (
    plgpu.SMEM((stages, CHUNK, columns), jnp.float32),
    plgpu.SMEM((stages, 2 * CHUNK, columns), jnp.float32),
    plgpu.Barrier(num_arrivals=2, num_barriers=stages),
  )

  def body(operands: Any, results: Any, buffers: Any) -> None:
    fields: Any = *operands, *results, *buffers, config
    _Combination(*fields).run()

  (combined,) = launch(
    body,
    (row, out, sums),
    [new(b, groups, width, columns, dtype=jnp.float32)],
    buffers,
    grid={"row": b, "head": groups, "block": width // CHUNK},
    config=config,
    name=name,
  )
  return combined


class _Sums(NamedTuple):
  """The carry over the ranges. [64 g] each

  Attributes:
    maximum: m', -inf before the first range.
    total: l'.
    out: o'.
  """

  maximum: Array
  total: Array
  out: Array


class _Combination(NamedTuple):
  """64 channels of a group of query heads of one row.

  Attributes:
    row: Which pages a row sees.
    partial: o of each range. [b groups ranges v g]
    sums: m and l of each range. [b groups ranges 2*64 g]
    out: The outputs, transposed. [b groups v g]
    partials: o of the ranges under way, in shared memory. [stage 64 g]
    totals: m and l of the ranges under way, likewise. [stage 2*64 g]
    arrived: One barrier per stage.
    config: Says whether the interpreter runs the kernel.
  """

  row: Row
  partial: Ref
  sums: Ref
  out: Ref
  partials: Ref
  totals: Ref
  arrived: Ref
  config: MosaicGpuConfig

  def run(self) -> None:
    """Combines the ranges in their order; zeros where there are none."""
    first, stop = ranges_of(self.row, lax.axis_index("row"))
    stages = self.partials.shape[0]
    for stage in range(stages):
      pl.when(first + stage < stop)(
        functools.partial(self._load, first + stage, stage)
      )

    def advance(index: Array, carry: _Sums) -> _Sums:
      stage = lax.rem(index - first, stages)
      plgpu.barrier_wait(self.arrived.at[stage])
      carry = self._add(stage, carry)
      plgpu.commit_smem()  # all have read this stage, before it is overwritten
      after = index + stages
      pl.when(after < stop)(functools.partial(self._load, after, stage))
      return carry

    last = lax.fori_loop(first, stop, advance, self._empty())
    total = jnp.where(last.total == 0, 1.0, last.total)
    place = lax.axis_index("row"), lax.axis_index("head"), self._channels
    self.out[(*place, slice(None))] = last.out / total

  @property
  def _channels(self) -> Any:
    # Copies of tiles must be told that they begin at a tile.
    start = pl.multiple_of(lax.axis_index("block") * CHUNK, CHUNK)
    return pl.ds(start, CHUNK)

  def _load(self, index: Array, stage: Array | int) -> None:
    """Starts the copies of what one range left to a stage's buffers."""
    place = lax.axis_index("row"), lax.axis_index("head"), index
    arrived = self.arrived.at[stage]
    source = self.partial.at[(*place, self._channels)]
    plgpu.copy_gmem_to_smem(source, self.partials.at[stage], arrived)
    plgpu.copy_gmem_to_smem(self.sums.at[place], self.totals.at[stage], arrived)

  def _empty(self) -> _Sums:
    zeros = jnp.zeros(self.partials.shape[1:], jnp.float32)
    return _Sums(jnp.full_like(zeros, -jnp.inf), zeros, zeros)

  def _add(self, stage: Array, carry: _Sums) -> _Sums:
    """Takes one range; its maximum is finite, as that of every range is."""
    place = functools.partial(as_accumulator, config=self.config)
    out = place(self.partials[stage])
    known = place(self.totals[stage, pl.ds(0, CHUNK)])
    total = place(self.totals[stage, pl.ds(CHUNK, CHUNK)])
    maximum = jnp.maximum(carry.maximum, known)
    rescale = jnp.exp(carry.maximum - maximum)
    scale = jnp.exp(known - maximum)
    return _Sums(
      maximum,
      carry.total * rescale + total * scale,
      carry.out * rescale + out * scale,
    )
