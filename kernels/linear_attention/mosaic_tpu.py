"""Linear attention as a Mosaic TPU kernel: the cell of one chunk.

With A the inclusive cumulated log decay and D_ij = exp(A_i - A_j) for i >= j:

    O = (exp(A) Q) S + (Q K^T * D) V
    S' = exp(A_c) S + (exp(A_c - A) K)^T V
"""

import functools
from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config, Ref, scan_heads


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
  """The operation as one kernel; arguments of `linear_attention`.

  The pool stays in HBM and is the result: a state moves when a request is
  resumed and when a chunk is captured, never between two chunks.
  """
  return scan_heads(
    functools.partial(_cell, precision),
    (q, k, v, log_decay),
    pool,
    chunks,
    config,
    "linear_attention",
  )


def _cell(
  precision: lax.Precision,
  carry: Ref,
  xs: Sequence[Ref],
  y: Ref,
  length: Array,
) -> None:
  """One chunk of a few key heads and of the value heads that share them.

  The product of queries and keys is made once per key head, decays differ per
  value head.

  Args:
    precision: Of the products.
    carry: States of the value heads, [1 hv k v]; updated.
    xs: q and k [h c k], v [hv c v], log_decay [hv 1 c].
    y: Outputs, [hv c v].
    length: Real tokens; the others are selected to zero before they enter.
  """
  q_ref, k_ref, v_ref, log_decay_ref = xs
  heads, groups = k_ref.shape[0], v_ref.shape[0] // k_ref.shape[0]
  for head in range(heads):
    q, k = (algebra.real_float32(x[head], length) for x in (q_ref, k_ref))
    query_key = algebra.dot(q, k, precision, (1, 1))
    for value_head in range(head * groups, (head + 1) * groups):
      state = carry[0, value_head]
      v = algebra.real_float32(v_ref[value_head], length)
      decay, from_start, to_end, whole = algebra.decays(
        algebra.real_log_decay(log_decay_ref[value_head], length)
      )
      out = algebra.dot(q * from_start, state, precision)
      y[value_head] = out + algebra.dot(query_key * decay, v, precision)
      update = algebra.dot(k * to_end, v, precision, (0, 0))
      carry[0, value_head] = state * whole + update


def _refusal(
  device: Device, config: Config, *arguments: Any, precision: lax.Precision
) -> str | None:
  """Why the call does not fit a TPU, or None."""
  q, k, v, _, pool, _ = arguments
  return fit.refusal_of_heads(config, q, k, v, pool, precision)


def _heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
  """Heads of a grid step."""
  return Config(block=fit.heads_per_step(*arguments[1:3]))


IMPLEMENTATION = Implementation(Config, _run, _refusal, _heuristic)
