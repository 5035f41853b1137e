"""linear_attention on GPU: a kernel per chunk and head, then the scan.

Nothing is solved for: the preparation makes P = Q K^T * D and the decays, see
`mosaic_gpu/chunk.py`, and the scan of `mosaic_gpu/state.py` takes the values as
they are, with no correction.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_gpu import chunk as algebra
from sparse_prefix_jax.kernels.mosaic_gpu import state as state_scan
from sparse_prefix_jax.kernels.mosaic_gpu.heads import implementation
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  cut_parts,
  launch,
  load,
  new,
  store_each,
  tile,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import real_rows
from sparse_prefix_jax.kernels.mosaic_gpu.step import step_implementation


def packed(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Runs the operation in two launches.

  It is called as `linear_attention` is. `precision` says nothing here:
  operands are bfloat16 parts, as many as the error of 1e-2 needs.

  Returns:
    The outputs, zero past a chunk's length, and the pool.
  """
  del precision
  log_decay = algebra.heads_first(log_decay, real_rows(chunks))
  keys = algebra.transposed_keys(k, real_rows(chunks))
  operands = _Operands(
    chunks.length, q, keys, log_decay, jnp.asarray(algebra.ones_after())
  )
  factors = prepare(operands, v, config)
  return state_scan.scan(factors, pool, chunks, config, "linear_attention")


IMPLEMENTATION = implementation(packed, value_bytes=2, operands=2)
STEP = step_implementation("linear_attention_step")


class _Operands(NamedTuple):
  """What the preparation reads.

  Attributes:
    lengths: Real tokens of each chunk. [n]
    q: The queries. [n c h k]
    keys: The transposed keys K^T, zero at padding. [n h k c]
    log_decay: The log decays, zero at padding. [n hv c]
    after: Ones below the diagonal. [c c]
  """

  lengths: Ref
  q: Ref
  keys: Ref
  log_decay: Ref
  after: Ref


class _Buffers(NamedTuple):
  """The buffers of `_prepare` in shared memory.

  Attributes:
    q: The queries of one chunk and head. [c k]
    keys: The transposed keys. [k c]
    gate: Log decays, and what is made of them.
    after: Ones below the diagonal. [c c]
    stage: The parts of P on their way out. [2 c c]
    arrived: Barrier of the loads.
  """

  q: Ref
  keys: Ref
  gate: algebra.Gate
  after: Ref
  stage: Ref
  arrived: Ref


def prepare(
  of: _Operands, v: BFloat16[Array, "n c hv v"], config: MosaicGpuConfig
) -> state_scan.Factors:
  """Computes the factors of all chunks but inactive ones, left unwritten.

  Args:
    of: The arrays that it reads.
    v: Values, which stand for X_v as they are.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  n, heads, _ = of.log_decay.shape
  width = of.q.shape[3]
  results = [
    new(n, heads, 2 * CHUNK, CHUNK),
    new(n, heads, 2 * CHUNK, dtype=jnp.float32),
    new(n, heads, width, dtype=jnp.float32),
  ]
  buffers = _Buffers(
    q=tile(CHUNK, width),
    keys=tile(width, CHUNK),
    gate=algebra.gate(width),
    after=tile(CHUNK, CHUNK),
    stage=tile(2, CHUNK, CHUNK),
    arrived=plgpu.Barrier(num_arrivals=4),
  )
  attention, scales, decay = launch(
    functools.partial(_prepare, config=config),
    of,
    results,
    buffers,
    grid={"chunk": n, "head": heads},
    config=config,
    name="linear_attention_prepare",
    approximate=True,
  )
  return state_scan.Factors(of.q, of.keys, attention, v, None, scales, decay)


def _prepare(
  of: _Operands,
  results: list[Ref],
  buffers: _Buffers,
  config: MosaicGpuConfig,
) -> None:
  """Computes P, scales and decay of one chunk and value head.

  Args:
    of: Operands, in global memory.
    results: Results, in global memory.
    buffers: Buffers, in shared memory.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  length = of.lengths[chunk]
  attention, scales, ends = results

  @pl.when(length > 0)
  def _() -> None:
    key_head = head // (of.log_decay.shape[1] // of.keys.shape[1])
    gate = buffers.gate
    copies = (
      (of.q.at[chunk, :, key_head], buffers.q),
      (of.keys.at[chunk, key_head], buffers.keys),
      (of.log_decay.at[chunk, head], gate.log_decay),
      (of.after, buffers.after),
    )
    load(copies, buffers.arrived)
    products = [[(buffers.q, buffers.keys)]]
    decay, scores = algebra.decays(gate, buffers.after, products, config)
    scores = algebra.real_scores(scores * decay, length)
    store_each(buffers.stage, cut_parts(scores, 2))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(gate.scales, scales.at[chunk, head])
    plgpu.copy_smem_to_gmem(gate.decay, ends.at[chunk, head])
    algebra.emit_scores(buffers.stage, attention.at[chunk, head])
    plgpu.wait_smem_to_gmem(0)
