"""kimi_delta_attention on GPU: a kernel per chunk and head, then the scan.

As gated_delta_rule, with decays per channel of the keys, so that

    L_ij = beta_i sum_k K_ik K_jk exp(A_ik - A_jk) for i > j
    P_ij =        sum_k Q_ik K_jk exp(A_ik - A_jk) for i >= j

are no products times a matrix of decays: see `mosaic_gpu/pairs.py`. Channels go
through shared memory a block at a time, and the sums add up.

Q and K come out of it with their decays in them, hence in two bfloat16 parts.
(With one, the state is off by 1.5e-2 after three chunks of correlated keys that
hardly decay: what K^T U adds has to cancel what is there.)
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.mosaic_gpu import chunk as algebra
from sparse_prefix_jax.kernels.mosaic_gpu import pairs
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
  vector,
)
from sparse_prefix_jax.kernels.mosaic_gpu.left_registers import dots
from sparse_prefix_jax.kernels.mosaic_gpu.segments import real_rows
from sparse_prefix_jax.kernels.mosaic_gpu.step import step_implementation


def packed(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv k"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Runs the operation in two launches.

  It is called as `kimi_delta_attention` is. `precision` says nothing here:
  operands are bfloat16 parts, as many as the error of 1e-2 needs.

  Returns:
    The outputs, zero past a chunk's length, and the pool.
  """
  del precision
  real = real_rows(chunks)
  operands = _Operands(
    lengths=chunks.length,
    q=q,
    k=k,
    keys=algebra.transposed_keys(k, real),
    v=v,
    beta=algebra.heads_first(beta, real),
    **_log_decays(log_decay, real),
  )
  factors = prepare(operands, config)
  return state_scan.scan(factors, pool, chunks, config, "kimi_delta_scan")


IMPLEMENTATION = implementation(packed, value_bytes=4, operands=5)
STEP = step_implementation("kimi_delta_attention_step")


class _Operands(NamedTuple):
  """What `prepare` reads.

  Attributes:
    lengths: How many real tokens each chunk has. [n]
    q: The queries. [n c h k]
    k: The keys. [n c h k]
    keys: The transposed keys K^T, zero at padding. [n h k c]
    v: The values. [n c hv v]
    beta: The strengths, zero at padding. [n hv c]
    steps: Log decays in two parts, one below the other. [n hv 2*c k]
    channels: The transposed log decays. [n hv 2 k c]
  """

  lengths: Any
  q: Any
  k: Any
  keys: Any
  v: Any
  beta: Any
  steps: Any
  channels: Any


class _Buffers(NamedTuple):
  """The buffers of `_prepare` in shared memory.

  Attributes:
    block: Operands of some channels, and what products are made of.
    work: What the inverse is made of.
    beta: Strengths, to lie along rows. [c]
    beta_again: The strengths again, to lie along columns. [c]
    decay: exp(A_c). [k]
    arrived: Barrier of all loads but values.
    again: Barrier of a second load of K and its log decays.
    loading: Barriers of values.
  """

  block: pairs.Block
  work: algebra.Work
  beta: Ref
  beta_again: Ref
  decay: Ref
  arrived: Ref
  again: Ref
  loading: Ref


def _log_decays(
  log_decay: Float32[Array, "n c hv k"], real: Bool[Array, "n c"]
) -> dict[str, Array]:
  """`steps` and `channels`, zero at padding, -inf as RESET.

  Args:
    log_decay: The log decays as callers give them.
    real: It says which rows hold tokens.
  """
  log_decay = algebra.settle_resets(log_decay)
  log_decay = jnp.where(real[:, :, None, None], log_decay, 0.0)
  log_decay = log_decay.swapaxes(1, 2)
  # XLA may leave out a cast to bfloat16 and back, but not this.
  high = lax.reduce_precision(log_decay, 8, 7)
  both = [x.astype(jnp.bfloat16) for x in (high, log_decay - high)]
  return {
    "steps": jnp.concatenate(both, axis=2),
    "channels": jnp.stack([x.swapaxes(2, 3) for x in both], axis=2),
  }


def prepare(of: _Operands, config: MosaicGpuConfig) -> state_scan.Factors:
  """Computes the factors of all chunks but inactive ones, left unwritten.

  Args:
    of: The arrays that it reads.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  n, _, heads, value_width = of.v.shape
  width = of.q.shape[3]
  results = [
    new(n, 2 * CHUNK, heads, width),
    new(n, heads, 2 * width, CHUNK),
    new(n, heads, 2 * CHUNK, CHUNK),
    new(n, CHUNK, heads, value_width, dtype=jnp.float32),
    new(n, heads, CHUNK, width),
    new(n, heads, width, dtype=jnp.float32),
  ]
  gate = vector(CHUNK)
  buffers = _Buffers(
    block=pairs.block(width),
    work=algebra.work(),
    beta=gate,
    beta_again=gate,
    decay=vector(width),
    arrived=plgpu.Barrier(num_arrivals=8),
    again=plgpu.Barrier(num_arrivals=2),
    loading=plgpu.Barrier(num_barriers=2),
  )
  *made, decay = launch(
    functools.partial(_prepare, config=config),
    of,
    results,
    buffers,
    grid={"chunk": n, "head": heads},
    config=config,
    name="kimi_delta_prepare",
  )
  scales = jnp.ones((n, heads, 2 * CHUNK), jnp.float32)  # they are in Q and K
  fields: Any = *made, scales, decay
  return state_scan.Factors(*fields)


def _prepare(
  of: _Operands,
  results: list[Ref],
  buffers: _Buffers,
  config: MosaicGpuConfig,
) -> None:
  """Computes, for one chunk and value head, all of `Factors` but the scales.

  Args:
    of: Operands, in global memory.
    results: Results, in global memory: Q, K, P, X_v, X_k and decays.
    buffers: Buffers, in shared memory.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  length = of.lengths[lax.axis_index("chunk")]

  @pl.when(length > 0)
  def _() -> None:
    zeros = jnp.zeros((CHUNK, CHUNK), jnp.float32)
    sums = zeros, zeros
    for channels in buffers.block.cut(of.q.shape[3]):
      _load(of, buffers, length, channels)
      _scaled(results, buffers, length, channels)
      sums = pairs.add(sums, buffers.block)
    _chunk(of, results, buffers, length, sums, config)


def _load(
  of: _Operands,
  buffers: _Buffers,
  length: Array,
  channels: Any,
  again: bool = False,
) -> None:
  """Loads some channels to shared memory, in place of others.

  Args:
    of: What the program reads, in global memory.
    buffers: The buffers of the program, in shared memory.
    length: Real tokens; K is selected to zero behind them.
    channels: The channels to take.
    again: Whether to load no more than K and the log decays in `steps`.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  key_head = head // (of.v.shape[2] // of.k.shape[2])
  block = buffers.block
  copies = (
    (of.k.at[chunk, :, key_head, channels], block.k),
    (of.steps.at[chunk, head, :, channels], block.steps),
    (of.q.at[chunk, :, key_head, channels], block.q),
    (of.keys.at[chunk, key_head, channels], block.keys),
    # One by one: of both, tiles would have too many dimensions for a copy.
    (of.channels.at[chunk, head, 0, channels], block.channels.at[0]),
    (of.channels.at[chunk, head, 1, channels], block.channels.at[1]),
    (of.beta.at[chunk, head], buffers.beta),
    (of.beta.at[chunk, head], buffers.beta_again),
  )
  plgpu.commit_smem()  # all have read what the copies overwrite
  if again:
    load(copies[:2], buffers.again)
  else:
    load(copies, buffers.arrived)
  pl.when(length < CHUNK)(lambda: algebra.clear_padding(block.k, length))


def _scaled(
  results: list[Ref], buffers: _Buffers, length: Array, channels: Any
) -> None:
  """Writes exp(A) Q, exp(A_c - A) K and exp(A_c) of some channels.

  Args:
    results: What the program writes, in global memory.
    buffers: `lower` and `decay` are overwritten.
    length: Real tokens; Q is selected to zero behind them.
    channels: The channels to take.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  queries, keys, *_, decay = results
  block, width = buffers.block, decay.shape[2]
  until, behind = block.masks(6)
  q = block.q[...].astype(jnp.float32) * block.until(until)
  row = lax.broadcasted_iota(jnp.int32, q.shape, 0)
  q = jnp.where(row < length, q, jnp.zeros_like(q))
  for part, value in enumerate(cut_parts(q, 2)):
    queries[chunk, pl.ds(part * CHUNK, CHUNK), head, channels] = value
  for rows in block.tiles:
    start = channels.start + rows.start
    for part, value in enumerate(cut_parts(block.keys_behind(behind, rows), 2)):
      keys[chunk, head, pl.ds(part * width + start, CHUNK)] = value
    total = block.channels[0, rows, :].astype(jnp.float32)
    total = total + block.channels[1, rows, :].astype(jnp.float32)
    buffers.decay[pl.ds(start, CHUNK)] = jnp.exp(jnp.sum(total, axis=1))
  plgpu.commit_smem()
  target = decay.at[chunk, head, channels]
  plgpu.copy_smem_to_gmem(buffers.decay.at[channels], target)


def _chunk(
  of: _Operands,
  results: list[Ref],
  buffers: _Buffers,
  length: Array,
  sums: tuple[Array, Array],
  config: MosaicGpuConfig,
) -> None:
  """Writes P and X, in the notation of the module.

  Args:
    of: What the program reads, in global memory.
    results: What the program writes, in global memory.
    buffers: They hold the last channels; all is overwritten.
    length: How many tokens are real.
    sums: Products of keys with keys, and of queries with keys.
    config: Its `interpret` says whether the interpreter runs the kernel.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  _, _, attention, solved, corrections, _ = results
  key_key, query_key = sums
  block = buffers.block
  # What the pairs were made of is free: P goes there, and V.
  first = pl.ds(0, CHUNK)
  stage = block.channels.at[:, first]
  store_each(stage, cut_parts(algebra.real_scores(query_key, length), 2))
  plgpu.commit_smem()
  algebra.emit_scores(stage, attention.at[chunk, head])
  room = [block.right.at[slot, first] for slot in range(2)]
  source = of.v.at[chunk, :, head]
  values = algebra.Values(source, room, buffers.loading, length)
  values.load_first()
  _until_keys(block)  # now, when few registers are taken
  lower = algebra.lower_of(key_key, buffers.beta)
  inverse = algebra.invert_unit_lower(lower, buffers.work, config)
  inverse = algebra.scaled_columns(inverse, buffers.beta_again)
  factor, target = algebra.cut_halves(inverse), solved.at[chunk, :, head]
  algebra.solve_values(factor, values, target, config)
  *earlier, last = block.cut(of.k.shape[3])
  for channels in (last, *earlier):  # the last ones are still there
    if channels is not last:
      _load(of, buffers, length, channels, again=True)
      _until_keys(block)
    for columns in block.tiles:
      right = [block.left.at[part, :, columns] for part in range(2)]
      (found,) = dots([algebra.times(factor, right)], config)
      target = pl.ds(channels.start + columns.start, CHUNK)
      corrections[chunk, head, :, target] = found.astype(jnp.bfloat16)
  plgpu.wait_smem_to_gmem(0)


def _until_keys(block: pairs.Block) -> None:
  """Writes the parts of exp(A) K to `left`."""
  until, _ = block.masks(6)
  scaled = block.k[...].astype(jnp.float32) * block.until(until)
  store_each(block.left, cut_parts(scaled, 2))
  plgpu.commit_smem()
