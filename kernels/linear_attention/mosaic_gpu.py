"""linear_attention for Hopper: a kernel per chunk and head, then the scan.

Nothing is solved for: the preparation makes P = Q K^T * D and the decays, see
`mosaic_gpu_chunk`, and the scan of `mosaic_gpu_state` takes the values as they
are, with no correction.
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
  dot,
  launch,
  real_rows,
  split,
  tile,
  too_old,
)


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
  """The operation in two launches; arguments of `linear_attention`.

  `precision` says nothing here: operands are bfloat16 parts, as many as the
  error of 1e-2 needs.
  """
  del precision
  log_decay = algebra.heads_first(log_decay, real_rows(chunks))
  keys = algebra.transposed_keys(k, real_rows(chunks))
  made = prepare(q, keys, log_decay, chunks, config)
  factors = state_scan.Factors(q, keys, made[0], v, None, *made[1:])
  return state_scan.scan(factors, pool, chunks, config, "linear_attention")


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
  return state_scan.sizes(q.shape[-1], v.shape[-1], 2, 2)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig, run=packed, refusal=refusal, heuristic=heuristic
)


class _Operands(NamedTuple):
  lengths: Ref
  q: Ref
  keys: Ref
  log_decay: Ref


class _Buffers(NamedTuple):
  """Shared memory of `_prepare`."""

  q: Ref
  keys: Ref
  log_decay: Ref
  scales: Ref
  decay: Ref
  work: algebra.Work
  arrived: Ref


def prepare(
  q: Array, keys: Array, log_decay: Array, chunks: Chunks, config: Any
) -> list[Array]:
  """P, scales and decay of `Factors`; of inactive chunks left unwritten.

  Args:
    q: Queries. [n c h k]
    keys: Keys, zero at padding. [n h k c]
    log_decay: Zero at padding. [n hv c]
    chunks: For the lengths.
    config: For the interpreter.
  """
  n, heads, _ = log_decay.shape
  width = q.shape[3]
  buffers = _Buffers(
    q=tile(CHUNK, width),
    keys=tile(width, CHUNK),
    log_decay=plgpu.SMEM((CHUNK,), jnp.float32),
    scales=plgpu.SMEM((2 * CHUNK,), jnp.float32),
    decay=plgpu.SMEM((width,), jnp.float32),
    work=algebra.work(),
    arrived=plgpu.Barrier(num_arrivals=3),
  )
  return launch(
    _prepare,
    _Operands(chunks.length, q, keys, log_decay),
    [
      jax.ShapeDtypeStruct((n, heads, 2 * CHUNK, CHUNK), jnp.bfloat16),
      jax.ShapeDtypeStruct((n, heads, 2 * CHUNK), jnp.float32),
      jax.ShapeDtypeStruct((n, heads, width), jnp.float32),
    ],
    buffers,
    grid={"chunk": n, "head": heads},
    config=config,
    name="linear_attention_prepare",
  )


def _prepare(of: _Operands, results: list[Ref], buffers: _Buffers) -> None:
  """One chunk and value head."""
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  length = of.lengths[chunk]
  attention, scales, ends = results

  @pl.when(length > 0)
  def _() -> None:
    key_head = head // (of.log_decay.shape[1] // of.keys.shape[1])
    copies = (
      (of.q.at[chunk, :, key_head], buffers.q),
      (of.keys.at[chunk, key_head], buffers.keys),
      (of.log_decay.at[chunk, head], buffers.log_decay),
    )
    for source, buffer in copies:
      plgpu.copy_gmem_to_smem(source, buffer, buffers.arrived)
    plgpu.barrier_wait(buffers.arrived)
    decay = algebra.decays(
      buffers.log_decay, buffers.scales, buffers.decay, buffers.work
    )
    plgpu.copy_smem_to_gmem(buffers.scales, scales.at[chunk, head])
    plgpu.copy_smem_to_gmem(buffers.decay, ends.at[chunk, head])
    scores = dot([(buffers.q, buffers.keys)], (CHUNK, CHUNK)) * decay
    row = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    scores = jnp.where(row < length, scores, jnp.zeros_like(scores))
    for part, value in enumerate(split(scores, 2)):
      attention[chunk, head, pl.ds(part * CHUNK, CHUNK)] = value
    plgpu.wait_smem_to_gmem(0)
