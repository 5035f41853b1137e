"""gated_delta_rule for Hopper: a kernel per chunk and head, then the scan.

The equations are those of `xla.py`. What does not depend on the state is made
by `_prepare` for all chunks and value heads at once, a program each:

    D_ij = exp(sum of log decays over (j, i])             [c c]
    T    = (I + L)^-1,  L = strictly lower (beta K K^T * D)
    X    = T [beta V, beta exp(A) K],  P = Q K^T * D

and the rest by the scan that all matrix-valued recurrences share. Shapes are
those of one chunk and one head in both, so bits do not depend on the packing.

Decays. The sums over (j, i] are a product with a matrix of zeros and ones, the
log decays split into three bfloat16 parts that hold all of their 24 bits: each
is a sum over its own segment, and no digits are lost behind a strong decay.

The inverse is forward substitution on pairs of blocks, of 1, 2, 4, ... 32 rows:
with the inverses A, B of two neighbouring diagonal blocks and C between them,

    [[A^-1, 0], [C, B^-1]]^-1 = [[A, 0], [-B C A, B]],

all pairs of a size in two products. Every block that it holds is a true inverse
of a part of I + L, of moderate entries. (A product of powers of L, which also
doubles, runs through huge entries that should cancel: it loses all digits where
keys repeat.) Operands in two bfloat16 parts keep 16 bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32

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
  dot_parts,
  indices,
  launch,
  parts,
  real_rows,
  split,
  store_parts,
  tile,
  too_old,
)

_RESET = -1e36  # exp gives the same zero as for -inf, and 0 * it is not NaN
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
  log_decay = jnp.where(log_decay == -jnp.inf, _RESET, log_decay)
  gates = jnp.stack([log_decay, beta], axis=1)  # [n 2 c hv]
  gates = jnp.where(real[:, None, :, None], gates, 0.0).transpose(0, 3, 1, 2)
  keys = jnp.where(real[:, :, None, None], k, jnp.zeros_like(k))
  keys = keys.transpose(0, 2, 3, 1)
  factors = prepare(q, k, keys, v, gates, chunks, config)
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
  return state_scan.sizes(q.shape[-1], v.shape[-1], 4, True)


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
  lower: Ref
  inverse: Ref
  between: Ref
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
    lower=tile(3, CHUNK, CHUNK),
    inverse=tile(2, CHUNK, CHUNK),
    between=tile(2, CHUNK, CHUNK),
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
    lambda: _clear_padding(buffers.k, of.lengths[chunk])
  )
  plgpu.commit_smem()


def _clear_padding(buffer: Ref, length: Array) -> None:
  """Rows past the length to zero: they are summed over, and may hold NaN."""
  row = lax.broadcasted_iota(jnp.int32, buffer.shape, 0)
  rows = buffer[...]
  buffer[...] = jnp.where(row < length, rows, jnp.zeros_like(rows))


def _chunk(
  of: _Operands, results: list[Ref], buffers: _Buffers, length: Array
) -> None:
  """P, X and the vectors of scales, in the notation of the module."""
  attention, values, corrections, scales, ends = results
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  row, column = indices()
  decay = _decays(buffers)
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
  inverse = _invert_unit_lower(lower, buffers)
  inverse = inverse * along_columns(buffers.beta_again[...], CHUNK)
  _solve_values(of, values, inverse, buffers, length)
  start = along_columns(buffers.scales[pl.ds(0, CHUNK)], CHUNK)
  solved = _times(inverse * start, buffers.k, buffers)
  corrections[chunk, head] = solved.astype(jnp.bfloat16)
  plgpu.wait_smem_to_gmem(0)


def _decays(buffers: _Buffers) -> Float32[Array, "c c"]:
  """D, zero above the diagonal; stores exp(A), exp(A_c - A) and exp(A_c)."""
  row, column = indices()
  each = along_columns(buffers.log_decay[...], CHUNK)
  until = jnp.where(column <= row, each, 0.0)
  store_parts(buffers.lower, until, 3)
  buffers.between[0] = jnp.where(row > column, 1.0, 0.0).astype(jnp.bfloat16)
  from_start = jnp.sum(until, axis=1)
  to_end = jnp.sum(jnp.where(column > row, each, 0.0), axis=1)
  buffers.scales[pl.ds(0, CHUNK)] = jnp.exp(from_start)
  buffers.scales[pl.ds(CHUNK, CHUNK)] = jnp.exp(to_end)
  for start in range(0, buffers.decay.shape[0], CHUNK):
    buffers.decay[pl.ds(start, CHUNK)] = jnp.exp(from_start + to_end)
  plgpu.commit_smem()
  inside = dot(
    [(buffers.lower.at[part], buffers.between.at[0]) for part in range(3)],
    _SQUARE,
  )
  return jnp.exp(jnp.where(row >= column, inside, -jnp.inf))


def _invert_unit_lower(
  lower: Float32[Array, "c c"], buffers: _Buffers
) -> Float32[Array, "c c"]:
  """(I + lower)^-1 by substitution on pairs of blocks; see the module."""
  row, column = indices()
  store_parts(buffers.lower, lower, 2)
  pairs = (row >> 1) == (column >> 1)
  inverse = jnp.where(row == column, 1.0, 0.0) - jnp.where(pairs, lower, 0.0)

  def level(size: Array, inverse: Array) -> Array:
    """From the inverses of blocks of 2^size rows to blocks of twice that."""
    store_parts(buffers.inverse, inverse, 2)
    plgpu.commit_smem()
    between = dot_parts(parts(buffers.lower), parts(buffers.inverse), CHUNK)
    neighbours = (row >> (size + 1)) == (column >> (size + 1))
    neighbours &= (row >> size) > (column >> size)
    store_parts(buffers.between, jnp.where(neighbours, between, 0.0), 2)
    plgpu.commit_smem()
    return inverse - dot_parts(
      parts(buffers.inverse), parts(buffers.between), CHUNK
    )

  return lax.fori_loop(1, 6, level, inverse)


def _times(
  x: Float32[Array, "c c"], right: Ref, buffers: _Buffers
) -> Float32[Array, "c r"]:
  """x times a bfloat16 buffer."""
  store_parts(buffers.inverse, x, 2)
  plgpu.commit_smem()
  pairs = [(part, right) for part in parts(buffers.inverse)]
  return dot(pairs, (CHUNK, right.shape[1]))


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
    _clear_padding(buffers.v, length)
    values[chunk, :, head, columns] = _times(inverse, buffers.v, buffers)
