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

import functools
from typing import Any, NamedTuple

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
  cut_parts,
  launch,
  new,
  store_each,
  tile,
  vector,
)
from sparse_prefix_jax.kernels.mosaic_gpu.left_registers import dots
from sparse_prefix_jax.kernels.mosaic_gpu.segments import real_rows
from sparse_prefix_jax.kernels.mosaic_gpu.step import step_implementation
from sparse_prefix_jax.kernels.mosaic_gpu.transposed import (
  with_transposed,
)


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
  after = jnp.asarray(algebra.ones_after())
  operands = _Operands(chunks.length, q, k, keys, v, gates, after)
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
    keys: The transposed keys K^T, zero at padding, which only the scan reads.
      [n h k c]
    v: The values. [n c hv v]
    gates: Log decays and strengths, zero at padding. [n hv 2 c]
    after: Ones below the diagonal. [c c]
  """

  lengths: Ref
  q: Ref
  k: Ref
  keys: Ref
  v: Ref
  gates: Ref
  after: Ref


class _Buffers(NamedTuple):
  """The buffers of `_prepare` in shared memory.

  Attributes:
    q: The queries of one chunk and head. [c k]
    k: The keys, zero at padding once `_load` is through. [c k]
    v: Some columns of V. [c 64] each
    gate: Log decays, and what is made of them.
    after: Ones below the diagonal. [c c]
    beta: Strengths, to lie along rows. [c]
    beta_again: The strengths again, to lie along columns. [c]
    work: Operands of products of [c c].
    stage: Two tiles on their way out. [2 c c]
    arrived: Barrier of all loads but v.
    loading: Barriers of v.
  """

  q: Ref
  k: Ref
  v: tuple[Ref, Ref]
  gate: algebra.Gate
  after: Ref
  beta: Ref
  beta_again: Ref
  work: algebra.Work
  stage: Ref
  arrived: Ref
  loading: Ref


def buffers_of(width: int) -> _Buffers:
  """The shared memory to ask for.

  At 128 keys a multiprocessor has room for two programs.

  Args:
    width: Keys of a head.
  """
  gate = vector(CHUNK)
  operand = functools.partial(tile, width=algebra.WIDTH)
  return _Buffers(
    q=operand(CHUNK, width),
    k=operand(CHUNK, width),
    v=(operand(CHUNK, CHUNK), operand(CHUNK, CHUNK)),
    gate=algebra.gate(width),
    after=tile(CHUNK, CHUNK),
    beta=gate,
    beta_again=gate,
    work=algebra.work(),
    stage=tile(2, CHUNK, CHUNK),
    arrived=plgpu.Barrier(num_arrivals=6),
    loading=plgpu.Barrier(num_barriers=2),
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
    functools.partial(_prepare, config=config),
    of,
    results,
    buffers_of(width),
    grid={"chunk": n, "head": heads},
    config=config,
    name="gated_delta_prepare",
    approximate=True,
    apart=True,  # where threads wait for one another is said by `commit_smem`
  )
  return state_scan.Factors(of.q, of.keys, *made)


def _prepare(
  of: _Operands,
  results: list[Ref],
  buffers: _Buffers,
  config: MosaicGpuConfig,
) -> None:
  """Computes, for one chunk and value head, all of `Factors` but Q and K.

  Args:
    of: Operands, in global memory.
    results: Results, in global memory: P, X_v, X_k, scales and decays.
    buffers: Buffers, in shared memory.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  length = of.lengths[chunk]

  @pl.when(length > 0)
  def _() -> None:
    source = of.v.at[chunk, :, head]
    values = algebra.Values(source, buffers.v, buffers.loading, length)
    _load(of, buffers, values)
    attention, solved, corrections, scales, ends = results
    decay, query_key, key_key = _products(buffers, config)
    scores = algebra.real_scores(query_key * decay, length)
    store_each(buffers.stage, cut_parts(scores, 2))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(buffers.gate.scales, scales.at[chunk, head])
    plgpu.copy_smem_to_gmem(buffers.gate.decay, ends.at[chunk, head])
    algebra.emit_scores(buffers.stage, attention.at[chunk, head])
    lower = algebra.lower_of(key_key * decay, buffers.beta)
    inverse = algebra.invert_unit_lower(lower, buffers.work, config)
    inverse = algebra.scaled_columns(inverse, buffers.beta_again)
    factor, target = algebra.cut_halves(inverse), solved.at[chunk, :, head]
    algebra.solve_values(factor, values, target, config)
    start = buffers.gate.scales.at[pl.ds(0, CHUNK)]
    factor = algebra.cut_halves(algebra.scaled_columns(inverse, start))
    _correct(factor, buffers, corrections.at[chunk, head], config)
    plgpu.wait_smem_to_gmem(0)


def _load(of: _Operands, buffers: _Buffers, values: algebra.Values) -> None:
  """Loads keys, queries and gates to shared memory, and begins with values.

  Args:
    of: Operands, in global memory.
    buffers: Buffers, in shared memory.
    values: V; keys are set to zero behind the length, too.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  key_head = head // (of.v.shape[2] // of.k.shape[2])
  copies = (
    (of.k.at[chunk, :, key_head], buffers.k),
    (of.q.at[chunk, :, key_head], buffers.q),
    (of.gates.at[chunk, head, 0], buffers.gate.log_decay),
    (of.gates.at[chunk, head, 1], buffers.beta),
    (of.gates.at[chunk, head, 1], buffers.beta_again),
    (of.after, buffers.after),
  )
  for source, buffer in copies:
    plgpu.copy_gmem_to_smem(source, buffer, buffers.arrived)
  values.load_first()
  plgpu.barrier_wait(buffers.arrived)

  @pl.when(values.length < CHUNK)
  def _() -> None:
    algebra.clear_padding(buffers.k, values.length)

  plgpu.commit_smem()


def _products(buffers: _Buffers, config: MosaicGpuConfig) -> list[Array]:
  """Computes the decays D, Q K^T and K K^T. [c c] each

  Args:
    buffers: What `_load` loaded; scales and decays are written.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  after = buffers.after

  def found(keys: Ref) -> Any:
    products = [[(buffers.q, keys)], [(buffers.k, keys)]]
    return algebra.decays(buffers.gate, after, products, config)

  sums: Any = with_transposed([buffers.k], found, config)
  return sums


def _correct(
  inverse: tuple[list[Array], list[Array]],
  buffers: _Buffers,
  corrections: Ref,
  config: MosaicGpuConfig,
) -> None:
  """Computes X_k, by 64 columns.

  Args:
    inverse: `cut_halves` of T, its columns scaled by beta exp(A).
    buffers: `stage` is overwritten.
    corrections: X_k in global memory. [c k]
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  for start in range(0, corrections.shape[1], 2 * CHUNK):
    width = min(corrections.shape[1] - start, 2 * CHUNK)
    keys = buffers.k.at[:, pl.ds(start, width)]
    (solved,) = dots([algebra.times(inverse, [keys])], config)
    solved = solved.astype(jnp.bfloat16)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for place in range(width // CHUNK):
      columns = slice(place * CHUNK, (place + 1) * CHUNK)
      buffers.stage[place] = solved[:, columns]
    plgpu.commit_smem()
    for place in range(width // CHUNK):
      target = pl.ds(start + place * CHUNK, CHUNK)
      plgpu.copy_smem_to_gmem(
        buffers.stage.at[place], corrections.at[:, target]
      )
