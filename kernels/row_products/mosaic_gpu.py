"""row_products on GPU: as many programs as multiprocessors read the weights.

A step of few rows reads every weight once and computes little, so a product is
as fast as the device reads. A program takes 64 outputs of one weight, and all
inputs or one of several ranges of them:

    out [64 b, 64 o] += x [64 b, 128 i]  W [64 o, 128 i]^T     128 inputs a step

Weights of one input are read by one launch, whose beginning and end are most of
the time of a small one. Where there are too few outputs for all multiprocessors
(those of the model width), the inputs are cut into ranges, and XLA adds up what
the programs of an output found, in the order of the ranges. How many ranges
there are is said by the shapes alone.

Rows are the 64 rows of a product whatever their number; those that are not
there hold anything and are not written.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  HOPPER,
  gpu_of,
  refused_device,
  refused_sizes,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  dot,
  launch,
  new,
  tile,
)
from sparse_prefix_jax.kernels.mosaic_gpu.transposed import (
  with_transposed,
)

STEP = 128
"""Inputs of a step; a multiple of it is taken."""
_MOST_RANGES = 8
"""Of inputs: more would cost the sum over them more than they save."""
_MOST_STAGES = 6


def multiply(
  x: Float[Array, "b i"],
  *weights: Float[Array, "_ i"],
  precision: lax.Precision,
  config: MosaicGpuConfig,
) -> tuple[Array, ...]:
  """Multiplies; arguments of `row_products`.

  Products of bfloat16 are exact, so `precision` says nothing.
  """
  del precision
  b, inputs = x.shape
  ranges, tiles = _ranges(x, *weights), _tiles(*weights)
  dtype = x.dtype if ranges == 1 else jnp.float32
  stages = config.stages
  buffers = (
    tile(stages, CHUNK, STEP),
    tile(stages, CHUNK, STEP),
    tile(CHUNK, CHUNK, dtype=dtype),
    plgpu.Barrier(num_arrivals=2, num_barriers=stages),
  )

  def body(operands: Any, results: Any, buffers: Any) -> None:
    steps = inputs // (STEP * ranges)
    fields: Any = *operands, results, *buffers, steps, config
    _Program(*fields).run()

  found = launch(
    body,
    (x, weights),
    [new(ranges, b, w.shape[0], dtype=dtype) for w in weights],
    buffers,
    grid={"range": ranges, "tile": tiles},
    config=config,
    name="row_products",
  )
  return tuple(_added(parts).astype(x.dtype) for parts in found)


class _Program(NamedTuple):
  """64 outputs of one weight, from a range of inputs.

  Attributes:
    x: The rows. [b i]
    weights: All weights. [o i] each
    results: Of each weight. [ranges b o]
    rows: Rows of the steps under way, in shared memory like the next two; what
      is behind row b is never written. [stage 64 128]
    columns: Weights of the steps under way. [stage 64 128]
    out: What leaves. [64 64]
    arrived: One barrier per stage.
    steps: Of the range.
    config: The static sizes of the kernel.
  """

  x: Ref
  weights: Any
  results: Any
  rows: Ref
  columns: Ref
  out: Ref
  arrived: Ref
  steps: int
  config: MosaicGpuConfig

  def run(self) -> None:
    """Finds the weight that the number of the program is in."""
    number, before = lax.axis_index("tile"), 0
    for weight, result in zip(self.weights, self.results, strict=True):
      behind = before + weight.shape[0] // CHUNK
      inside = (number >= before) & (number < behind)
      place = number - before
      pl.when(inside)(functools.partial(self._run, weight, result, place))
      before = behind

  def _run(self, weight: Ref, result: Ref, place: Array) -> None:
    """Adds up the steps in their order, and writes the sum."""
    outputs = pl.ds(place * CHUNK, CHUNK)
    which = lax.axis_index("range")
    copy = functools.partial(self._load, weight.at[outputs], which * self.steps)
    for stage in range(min(self.config.stages, self.steps)):
      copy(stage, stage)
    advance = functools.partial(self._advance, copy)
    zeros = jnp.zeros((CHUNK, CHUNK), jnp.float32)
    total = lax.fori_loop(0, self.steps, advance, zeros)
    self.out[...] = total.astype(self.out.dtype)
    plgpu.commit_smem()
    rows = pl.ds(0, self.x.shape[0])
    plgpu.copy_smem_to_gmem(self.out.at[rows], result.at[which, :, outputs])
    plgpu.wait_smem_to_gmem(0)

  def _load(
    self, weight: Ref, first: Array, step: Array | int, stage: Array | int
  ) -> None:
    """Starts the copies of one step's rows and weights to a stage's buffers."""
    inputs = pl.ds((first + step) * STEP, STEP)
    rows = self.rows.at[stage, pl.ds(0, self.x.shape[0])]
    arrived = self.arrived.at[stage]
    plgpu.copy_gmem_to_smem(self.x.at[:, inputs], rows, arrived)
    columns = self.columns.at[stage]
    plgpu.copy_gmem_to_smem(weight.at[:, inputs], columns, arrived)

  def _advance(
    self, load: Any, step: Array, total: Float32[Array, "b o"]
  ) -> Float32[Array, "b o"]:
    """Adds a step's products, and starts the copies of a later step."""
    stage = lax.rem(step, self.config.stages)
    plgpu.barrier_wait(self.arrived.at[stage])

    def multiplied(columns: Ref) -> Array:
      return dot([(self.rows.at[stage], columns)], (CHUNK, CHUNK))

    total += with_transposed([self.columns.at[stage]], multiplied, self.config)
    plgpu.commit_smem()  # all have read this stage, before it is overwritten
    after = step + self.config.stages
    pl.when(after < self.steps)(functools.partial(load, after, stage))
    return total


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  x: Array,
  *weights: Array,
  precision: lax.Precision,
) -> str | None:
  """Why the kernel does not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernel.
    x: Rows. [b i]
    *weights: A row for each output. [o i] each
    precision: Ignored, since products of bfloat16 are exact.
  """
  del precision
  if x.dtype != jnp.bfloat16:
    return "takes bfloat16 only, the operands of its products"
  b, inputs = x.shape
  if b % 8 or not 0 < b <= CHUNK:
    return f"takes 8 rows or a multiple, {CHUNK} at most, and these are {b}"
  if inputs % STEP:
    return f"takes multiples of {STEP} inputs, and these are {inputs}"
  if any(w.shape[0] % CHUNK or not w.shape[0] for w in weights):
    outputs = ", ".join(str(w.shape[0]) for w in weights)
    return f"takes multiples of {CHUNK} outputs, and these are {outputs}"
  if _tiles(*weights) > HOPPER.multiprocessors:
    return (
      f"takes {HOPPER.multiprocessors * CHUNK} outputs at most, a program each "
      f"for {CHUNK} of them, not {_tiles(*weights) * CHUNK}"
    )
  refused = refused_device(device, config, products=True) or refused_sizes(
    config.stages, _shared_bytes(config.stages)
  )
  if refused is None and not gpu_of(device).warpgroup_products:
    return f"needs products of warpgroups, and a {device.kind} has none"
  return refused


def heuristic(
  device: Device, x: Array, *weights: Array, **_: Any
) -> MosaicGpuConfig:
  """As many stages as a range has steps, as far as shared memory has room."""
  del device
  steps = x.shape[1] // (STEP * _ranges(x, *weights))
  return MosaicGpuConfig(stages=max(1, min(_MOST_STAGES, steps)))


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=multiply,
  refusal=refusal,
  heuristic=heuristic,
)


def _tiles(*weights: Array) -> int:
  """The programs of all outputs."""
  return sum(w.shape[0] // CHUNK for w in weights)


def _ranges(x: Array, *weights: Array) -> int:
  """Ranges of inputs: as many as leave every multiprocessor one program.

  Of the largest device, whichever there is: sums have their order by it.
  """
  steps, tiles = max(1, x.shape[1] // STEP), max(1, _tiles(*weights))
  return max(
    ranges
    for ranges in range(1, _MOST_RANGES + 1)
    if ranges == 1
    or (steps % ranges == 0 and tiles * ranges <= HOPPER.multiprocessors)
  )


def _added(parts: Float[Array, "ranges b o"]) -> Float[Array, "b o"]:
  """The sum over ranges, in their order."""
  return functools.reduce(jax.lax.add, list(parts))


def _shared_bytes(stages: int) -> int:
  """Counts the bytes of rows and weights under way, and of what leaves."""
  return 2 * 2 * stages * CHUNK * STEP + 4 * CHUNK * CHUNK
