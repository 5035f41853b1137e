"""gated_delta_rule on GPU: a kernel per chunk and head, then the scan.

The equations are those of `xla.py`. What does not depend on the state is made
by `_prepare` for all chunks and value heads at once, a program each:

    D_ij = exp(sum of log decays over (j, i])             [c c]
    T    = (I + L)^-1,  L = strictly lower (beta K K^T * D)
    X    = T [beta V, beta exp(A) K],  P = Q K^T * D

(see `mosaic_gpu/chunk.py`), and the rest by the scan that all matrix-valued
recurrences share. Shapes are those of one chunk and one head in both, so bits
do not depend on the packing.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_gpu import chunk as algebra
from sparse_prefix_jax.kernels.mosaic_gpu import state as state_scan
from sparse_prefix_jax.kernels.mosaic_gpu.heads import implementation
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  along_columns,
  dot,
  launch,
  load,
  new,
  tile,
  vector,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import real_rows
from sparse_prefix_jax.kernels.mosaic_gpu.step import step_implementation

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
  """Runs the operation in two launches.

  It is called as `gated_delta_rule` is. `precision` says nothing here:
  operands are bfloat16 parts, as many as the error of 1e-2 needs.

  Returns:
    The outputs, zero past a chunk's length, and the pool.
  """
  del precision
  real = real_rows(chunks)
  gates = [algebra.heads_first(x, real) for x in (log_decay, beta)]
  keys = algebra.transposed_keys(k, real)
  gates = jnp.stack(gates, axis=2)
  operands = _Operands(chunks.length, q, k, keys, v, gates)
  factors = prepare(operands, config)
  return state_scan.scan(factors, pool, chunks, config, "gated_delta_scan")


IMPLEMENTATION = implementation(packed, value_bytes=4, operands=3)
STEP = step_implementation("gated_delta_rule_step")


class _Operands(NamedTuple):
  """What `prepare` reads.

  Attributes:
    lengths: Real tokens of each chunk. [n]
    q: The queries. [n c h k]
    k: The keys. [n c h k]
    keys: The transposed keys K^T, zero at padding. [n h k c]
    v: The values. [n c hv v]
    gates: Log decays and strengths, zero at padding. [n hv 2 c]
  """

  lengths: Ref
  q: Ref
  k: Ref
  keys: Ref
  v: Ref
  gates: Ref


class _Buffers(NamedTuple):
  """The buffers of `_prepare` in shared memory.

  Attributes:
    q: The queries of one chunk and head. [c k]
    k: The keys, zero at padding once `_load` is through. [c k]
    keys: The transposed keys, then `v`. [k c]
    log_decay: The log decay of each token. [c]
    beta: Strengths, to lie along rows. [c]
    beta_again: The strengths again, to lie along columns. [c]
    scales: exp(A) and exp(A_c - A). [2*c]
    decay: exp(A_c), k times. [k]
    work: Operands of products of [c c].
    arrived: Barrier of all loads but v.
    loading: Barrier of v.
  """

  q: Ref
  k: Ref
  keys: Ref
  log_decay: Ref
  beta: Ref
  beta_again: Ref
  scales: Ref
  decay: Ref
  work: algebra.Work
  arrived: Ref
  loading: Ref

  @property
  def v(self) -> Ref:
    """Some columns of V [c 64], where K^T was: a second program fits so.

    The last product with K^T is that of K and K^T. The inverse is made of what
    comes out of it, and on the way there all threads wait for one another, so
    nobody reads K^T any more when the first copy of V begins.
    """
    return self.keys.at[pl.ds(0, CHUNK)]


def buffers_of(width: int) -> _Buffers:
  """The shared memory to ask for.

  At 128 keys a multiprocessor has room for two programs.

  Args:
    width: Keys of a head.
  """
  gate = vector(CHUNK)
  return _Buffers(
    q=tile(CHUNK, width),
    k=tile(CHUNK, width),
    keys=tile(width, CHUNK),
    log_decay=gate,
    beta=gate,
    beta_again=gate,
    scales=vector(2 * CHUNK),
    decay=vector(width),
    work=algebra.work(),
    arrived=plgpu.Barrier(num_arrivals=6),
    loading=plgpu.Barrier(),
  )


def prepare(of: _Operands, config: MosaicGpuConfig) -> state_scan.Factors:
  """Computes the factors of all chunks but inactive ones, left unwritten.

  Args:
    of: The arrays that it reads.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  n, _, heads, value_width = of.v.shape
  width = of.q.shape[3]
  results = [
    new(n, heads, 2 * CHUNK, CHUNK),
    new(n, CHUNK, heads, value_width, dtype=jnp.float32),
    new(n, heads, CHUNK, width),
    new(n, heads, 2 * CHUNK, dtype=jnp.float32),
    new(n, heads, width, dtype=jnp.float32),
  ]
  made = launch(
    _prepare,
    of,
    results,
    buffers_of(width),
    grid={"chunk": n, "head": heads},
    config=config,
    name="gated_delta_prepare",
  )
  return state_scan.Factors(of.q, of.keys, *made)


def _prepare(of: _Operands, results: list[Ref], buffers: _Buffers) -> None:
  """Computes, for one chunk and value head, all of `Factors` but Q and K.

  Args:
    of: Operands, in global memory.
    results: Results, in global memory: P, X_v, X_k, scales and decays.
    buffers: Buffers, in shared memory.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  length = of.lengths[chunk]

  @pl.when(length > 0)
  def _() -> None:
    _load(of, buffers, length)
    attention, values, corrections, scales, ends = results
    decay = algebra.decays(
      buffers.log_decay, buffers.scales, buffers.decay, buffers.work
    )
    plgpu.copy_smem_to_gmem(buffers.scales, scales.at[chunk, head])
    plgpu.copy_smem_to_gmem(buffers.decay, ends.at[chunk, head])
    scores = dot([(buffers.q, buffers.keys)], _SQUARE) * decay
    algebra.emit_scores(scores, length, attention.at[chunk, head])
    inverse = _solve(buffers, decay, length)
    pair = of.v.at[chunk, :, head], values.at[chunk, :, head]
    algebra.solve_values(
      inverse, pair, length, buffers.v, buffers.loading, buffers.work
    )
    start = along_columns(buffers.scales[pl.ds(0, CHUNK)], CHUNK)
    solved = algebra.times(inverse * start, buffers.k, buffers.work)
    corrections[chunk, head] = solved.astype(jnp.bfloat16)
    plgpu.wait_smem_to_gmem(0)


def _load(of: _Operands, buffers: _Buffers, length: Array) -> None:
  """Loads keys, queries and gates to shared memory.

  Args:
    of: Operands, in global memory.
    buffers: Buffers, in shared memory.
    length: Real tokens: keys behind them are set to zero.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  key_head = head // (of.v.shape[2] // of.k.shape[2])
  copies = (
    (of.q.at[chunk, :, key_head], buffers.q),
    (of.k.at[chunk, :, key_head], buffers.k),
    (of.keys.at[chunk, key_head], buffers.keys),
    (of.gates.at[chunk, head, 0], buffers.log_decay),
    (of.gates.at[chunk, head, 1], buffers.beta),
    (of.gates.at[chunk, head, 1], buffers.beta_again),
  )
  load(copies, buffers.arrived)
  pl.when(length < CHUNK)(lambda: algebra.clear_padding(buffers.k, length))
  plgpu.commit_smem()


def _solve(
  buffers: _Buffers, decay: Float32[Array, "c c"], length: Array
) -> Float32[Array, "c c"]:
  """Computes T, its columns scaled by beta.

  Args:
    buffers: `work` is overwritten.
    decay: The decays D between tokens.
    length: How many tokens are real.
  """
  key_key = dot([(buffers.k, buffers.keys)], _SQUARE) * decay
  lower = algebra.lower_of(key_key, buffers.beta, length)
  inverse = algebra.invert_unit_lower(lower, buffers.work)
  return inverse * along_columns(buffers.beta_again[...], CHUNK)
