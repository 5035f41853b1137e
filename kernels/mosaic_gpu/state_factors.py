"""What a preparation hands to the scan of the matrix-valued recurrences."""

from typing import Any, NamedTuple

from jax import Array, lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import BFloat16, Float, Float32

from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  Ref,
  tile,
  vector,
)

PARTS = 2
"""How many parts the state and U have, as operands of products."""


class Factors(NamedTuple):
  """What a preparation hands to the scan.

  Attributes:
    q: Queries Q; hq is h, or hv if they are scaled per value head, and then in
      two parts, one below the other: m is 1 or 2.
    keys: K^T, zero at padding; hk is h, or hv if they are scaled per value
      head, and then in two parts, likewise.
    attention: P in two parts, one below the other. A row past the length is
      zero.
    values: X_v, float32 or bfloat16.
    corrections: X_k, or None for no correction.
    scales: e_o and e_u, one behind the other.
    decay: e_s.
  """

  q: BFloat16[Array, "n m*c hq k"]
  keys: BFloat16[Array, "n hk m*k c"]
  attention: BFloat16[Array, "n hv 2*c c"]
  values: Float[Array, "n c hv v"]
  corrections: BFloat16[Array, "n hv c k"] | None
  scales: Float32[Array, "n hv 2*c"]
  decay: Float32[Array, "n hv k"]


def loads(factors: Factors) -> int:
  """How many copies bring the factors of a chunk."""
  return len([x for x in factors if x is not None])


def staged(factors: Factors, columns: int, stages: int, width: int) -> Ref:
  """The shared memory for the factors of the chunks under way, as `Factors`.

  Args:
    factors: Factors of all chunks.
    columns: Value columns of a program.
    stages: How many chunks are under way at a time.
    width: Columns of a tile of an operand, at most.
  """
  keys = factors.q.shape[3]
  corrected = factors.corrections is not None

  def operand(*shape: int) -> Any:
    return tile(stages, *shape, width=width)

  fields: Any = Factors
  return fields(
    q=operand(factors.q.shape[1], keys),
    keys=operand(factors.keys.shape[2], CHUNK),
    attention=operand(PARTS * CHUNK, CHUNK),
    values=tile(stages, CHUNK, columns, dtype=factors.values.dtype),
    corrections=operand(CHUNK, keys) if corrected else None,
    scales=vector(stages, 2 * CHUNK),
    decay=vector(stages, keys),
  )


def at_stage(buffers: Ref, stage: Array | int) -> Ref:
  """The buffers of a stage, as `Factors`."""
  return type(buffers)(*(x if x is None else x.at[stage] for x in buffers))


def load_factors(
  factors: Ref, chunk: Array, columns: Any, buffers: Ref, barrier: Ref
) -> None:
  """Starts the copies of a chunk's factors for the head of a program.

  Args:
    factors: Factors of all chunks, in global memory.
    chunk: The number of the chunk.
    columns: Which value columns.
    buffers: The buffers of a stage.
    barrier: What the copies complete.
  """
  head = lax.axis_index("head")
  per_value_head = factors.attention.shape[1]
  query_head = head // (per_value_head // factors.q.shape[2])
  key_head = head // (per_value_head // factors.keys.shape[1])
  sources = factors._replace(
    q=factors.q.at[chunk, :, query_head],
    keys=factors.keys.at[chunk, key_head],
    attention=factors.attention.at[chunk, head],
    values=factors.values.at[chunk, :, head, columns],
    corrections=None
    if factors.corrections is None
    else factors.corrections.at[chunk, head],
    scales=factors.scales.at[chunk, head],
    decay=factors.decay.at[chunk, head],
  )
  for source, buffer in zip(sources, buffers, strict=True):
    if source is not None:
      plgpu.copy_gmem_to_smem(source, buffer, barrier)
