"""gated_delta_rule for Hopper: a kernel per chunk and head, then the scan.

The equations are those of `xla.py`. What does not depend on the state is made
by `_prepare` for all chunks and value heads at once, a program each:

    D_ij = exp(sum of log decays over (j, i])             [c c]
    T    = (I + L)^-1,  L = strictly lower (beta K K^T * D)
    X    = T [beta V, beta exp(A) K],  P = Q K^T * D

(see `mosaic_gpu_chunk`), and the rest by the scan that all matrix-valued
recurrences share. Shapes are those of one chunk and one head in both, so bits
do not depend on the packing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels import mosaic_gpu_chunk as algebra
from sparse_prefix_jax.kernels import mosaic_gpu_state as state_scan
from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_columns,
  along_rows,
  dot,
  indices,
  launch,
  real_rows,
  split,
  tile,
  too_old,
)

_SQUARE = (CHUNK, CHUNK)


def packed(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """The operation in two launches; arguments of `gated_delta_rule`.

  `precision` says nothing here: operands are bfloat16 parts, as many as the
  error of 1e-2 needs.
  """
  del precision
  real = real_rows(chunks)
  gates = [algebra.heads_first(x, real) for x in (log_decay, beta)]
  keys = algebra.transposed_keys(k, real)
  factors = prepare(q, k, keys, v, jnp.stack(gates, 2), chunks, config)
  return state_scan.scan(factors, pool, chunks, config, "gated_delta_scan")


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  q: Array,
  k: Array,
  v: Array,
  *_: Any,
  **__: Any,
) -> str | None:
  """Why the kernels do not take these arguments, or None."""
  return too_old(device, config) or state_scan.unfit(q, k, v, config)


def heuristic(
  device: Device, q: Array, k: Array, v: Array, *_: Any, **__: Any
) -> MosaicGpuConfig:
  """Sizes for heads of these widths."""
  return state_scan.sizes(q.shape[-1], v.shape[-1], 4, 3)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig, run=packed, refusal=refusal, heuristic=heuristic
)


class _Operands(NamedTuple):
  lengths: Ref
  q: Ref
  k: Ref
  keys: Ref
  v: Ref
  gates: Ref


class _Buffers(NamedTuple):
  """Shared memory of `_prepare`."""

  q: Ref
  k: Ref
  keys: Ref
  v: Ref
  log_decay: Ref
  beta: Ref
  beta_again: Ref
  scales: Ref
  decay: Ref
  work: algebra.Work
  arrived: Ref
  loading: Ref


def prepare(
  q: Array,
  k: Array,
  keys: Array,
  v: Array,
  gates: Array,
  chunks: Chunks,
  config: MosaicGpuConfig,
) -> state_scan.Factors:
  """The factors of all chunks; those of inactive ones are left unwritten.

  Args:
    q: Queries. [n c h k]
    k: Keys. [n c h k]
    keys: Keys, zero at padding. [n h k c]
    v: Values. [n c hv v]
    gates: Log decays and strengths, zero at padding. [n hv 2 c]
    chunks: For the lengths.
    config: For the interpreter.
  """
  n, _, heads, value_width = v.shape
  width = q.shape[3]

  def new(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  results = [
    new(n, heads, 2 * CHUNK, CHUNK),
    new(n, CHUNK, heads, value_width, dtype=jnp.float32),
    new(n, heads, CHUNK, width),
    new(n, heads, 2 * CHUNK, dtype=jnp.float32),
    new(n, heads, width, dtype=jnp.float32),
  ]
  gate = plgpu.SMEM((CHUNK,), jnp.float32)
  buffers = _Buffers(
    q=tile(CHUNK, width),
    k=tile(CHUNK, width),
    keys=tile(width, CHUNK),
    v=tile(CHUNK, CHUNK),
    log_decay=gate,
    beta=gate,
    beta_again=gate,
    scales=plgpu.SMEM((2 * CHUNK,), jnp.float32),
    decay=plgpu.SMEM((width,), jnp.float32),
    work=algebra.work(),
    arrived=plgpu.Barrier(num_arrivals=6),
    loading=plgpu.Barrier(),
  )
  attention, values, corrections, *scales = launch(
    _prepare,
    _Operands(chunks.length, q, k, keys, v, gates),
    results,
    buffers,
    grid={"chunk": n, "head": heads},
    config=config,
    name="gated_delta_prepare",
  )
  return state_scan.Factors(q, keys, attention, values, corrections, *scales)


def _prepare(of: _Operands, results: list[Ref], buffers: _Buffers) -> None:
  """One chunk and value head."""
  chunk = lax.axis_index("chunk")
  length = of.lengths[chunk]

  @pl.when(length > 0)
  def _() -> None:
    _load(of, buffers, chunk, lax.axis_index("head"))
    _chunk(of, results, buffers, length)


def _load(of: _Operands, buffers: _Buffers, chunk: Array, head: Array) -> None:
  """Keys, queries and gates to shared memory."""
  key_head = head // (of.v.shape[2] // of.k.shape[2])
  copies = (
    (of.q.at[chunk, :, key_head], buffers.q),
    (of.k.at[chunk, :, key_head], buffers.k),
    (of.keys.at[chunk, key_head], buffers.keys),
    (of.gates.at[chunk, head, 0], buffers.log_decay),
    (of.gates.at[chunk, head, 1], buffers.beta),
    (of.gates.at[chunk, head, 1], buffers.beta_again),
  )
  for source, buffer in copies:
    plgpu.copy_gmem_to_smem(source, buffer, buffers.arrived)
  plgpu.barrier_wait(buffers.arrived)
  pl.when(of.lengths[chunk] < CHUNK)(
    lambda: algebra.clear_padding(buffers.k, of.lengths[chunk])
  )
  plgpu.commit_smem()


def _chunk(
  of: _Operands, results: list[Ref], buffers: _Buffers, length: Array
) -> None:
  """P, X and the vectors of scales, in the notation of the module."""
  attention, values, corrections, scales, ends = results
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  row, column = indices()
  decay = algebra.decays(
    buffers.log_decay, buffers.scales, buffers.decay, buffers.work
  )
  plgpu.copy_smem_to_gmem(buffers.scales, scales.at[chunk, head])
  plgpu.copy_smem_to_gmem(buffers.decay, ends.at[chunk, head])
  # Whatever padding holds is in rows of its own here, and selected away.
  query_key = dot([(buffers.q, buffers.keys)], _SQUARE) * decay
  query_key = jnp.where(row < length, query_key, 0.0)
  for part, value in enumerate(split(query_key, 2)):
    attention[chunk, head, pl.ds(part * CHUNK, CHUNK)] = value
  key_key = dot([(buffers.k, buffers.keys)], _SQUARE) * decay
  lower = key_key * along_rows(buffers.beta[...], CHUNK)
  lower = jnp.where((row > column) & (row < length), lower, 0.0)
  inverse = algebra.invert_unit_lower(lower, buffers.work)
  inverse = inverse * along_columns(buffers.beta_again[...], CHUNK)
  _solve_values(of, values, inverse, buffers, length)
  start = along_columns(buffers.scales[pl.ds(0, CHUNK)], CHUNK)
  solved = algebra.times(inverse * start, buffers.k, buffers.work)
  corrections[chunk, head] = solved.astype(jnp.bfloat16)
  plgpu.wait_smem_to_gmem(0)


def _solve_values(
  of: _Operands,
  values: Ref,
  inverse: Float32[Array, "c c"],
  buffers: _Buffers,
  length: Array,
) -> None:
  """X_v, by 64 columns: a load, a product, a store."""
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  for start in range(0, of.v.shape[3], CHUNK):
    columns = pl.ds(start, CHUNK)
    source = of.v.at[chunk, :, head, columns]
    plgpu.copy_gmem_to_smem(source, buffers.v, buffers.loading)
    plgpu.barrier_wait(buffers.loading)
    algebra.clear_padding(buffers.v, length)
    values[chunk, :, head, columns] = algebra.times(
      inverse, buffers.v, buffers.work
    )
