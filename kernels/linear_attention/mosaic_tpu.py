"""Linear attention as a Mosaic TPU kernel: the cell of one chunk.

With A the inclusive cumulated log decay and D_ij = exp(A_i - A_j) for i >= j:

    O = (exp(A) Q) S + (Q K^T * D) V
    S' = exp(A_c) S + (exp(A_c - A) K)^T V
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu import (
  Config,
  Operand,
  Ref,
  heads_first,
  heads_per_step,
  packed_scan,
  refusal_of_heads,
  row_per_head,
)
from sparse_prefix_jax.kernels.mosaic_tpu_algebra import (
  decays,
  dot,
  real_float32,
  real_log_decay,
)


def _run(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: Config,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """The operation as one kernel; arguments of `linear_attention`."""
  xs = [Operand(heads_first(x), 1) for x in (q, k, v)]
  xs.append(Operand(row_per_head(log_decay), 1))
  out = jax.ShapeDtypeStruct(xs[2].array.shape, jnp.float32)
  out, pool = packed_scan(
    functools.partial(_cell, precision),
    xs,
    Operand(out, 1),
    Operand(pool, 1),
    chunks,
    blocks=k.shape[2] // config.block,
    config=config,
    name="linear_attention",
  )
  return heads_first(out), pool


def _cell(
  precision: lax.Precision,
  carry: Ref,
  xs: Sequence[Ref],
  y: Ref,
  length: Array,
) -> None:
  """One chunk of a few key heads and of the value heads that share them."""
  q_ref, k_ref, v_ref, log_decay_ref = xs
  heads, groups = k_ref.shape[0], v_ref.shape[0] // k_ref.shape[0]
  for head in range(heads):
    q, k = (real_float32(x[head], length) for x in (q_ref, k_ref))
    query_key = dot(q, k, precision, (1, 1))
    for value_head in range(head * groups, (head + 1) * groups):
      state, v = carry[0, value_head], real_float32(v_ref[value_head], length)
      decay, from_start, to_end, whole = decays(
        real_log_decay(log_decay_ref[value_head], length)
      )
      out = dot(q * from_start, state, precision)
      y[value_head] = out + dot(query_key * decay, v, precision)
      update = dot(k * to_end, v, precision, (0, 0))
      carry[0, value_head] = state * whole + update


def _refusal(
  device: Device, config: Config, *arguments: Any, precision: lax.Precision
) -> str | None:
  q, k, v, _, pool, _ = arguments
  return refusal_of_heads(config, q, k, v, pool, precision)


def _heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
  return Config(block=heads_per_step(*arguments[1:3]))


IMPLEMENTATION = Implementation(Config, _run, _refusal, _heuristic)
