"""Gated delta rule as a Mosaic TPU kernel: the cell of one chunk.

With A the inclusive cumulated log decay, D_ij = exp(A_i - A_j) for i >= j and
L = strictly lower (beta K K^T * D), as in `xla.py`, but solved once:

    U = (I + L)^-1 beta (V - (exp(A) K) S)
    O = (exp(A) Q) S + (Q K^T * D) U
    S' = exp(A_c) S + (exp(A_c - A) K)^T U
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
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
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: Config,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """The operation as one kernel; arguments of `gated_delta_rule`.

  The pool stays in HBM and is the result: a state moves when a request is
  resumed and when a chunk is captured, never between two chunks.
  """
  return scan_heads(
    functools.partial(_cell, precision),
    (q, k, v, log_decay, beta),
    pool,
    chunks,
    config,
    "gated_delta_rule",
  )


def _cell(
  precision: lax.Precision,
  carry: Ref,
  xs: Sequence[Ref],
  y: Ref,
  length: Array,
) -> None:
  """One chunk of a few key heads and of the value heads that share them.

  Products of keys are made once per key head, decays differ per value head. The
  state enters before the system is solved, not after: one right-hand side of
  width v, instead of two of widths v and k whose solutions nearly cancel where
  the state predicts the values well.

  Args:
    precision: Of the products.
    carry: States of the value heads, [1 hv k v]; updated.
    xs: q and k [h c k], v [hv c v], log_decay and beta [hv 1 c].
    y: Outputs, [hv c v].
    length: Real tokens; the others are selected to zero before they enter.
  """
  q_ref, k_ref, v_ref, log_decay_ref, beta_ref = xs
  heads, size = k_ref.shape[:2]
  groups = v_ref.shape[0] // heads
  real = algebra.real_rows(size, length)
  i, j = (algebra.iota((size, size), axis) for axis in (0, 1))
  for head in range(heads):
    q, k = (algebra.real_float32(x[head], length) for x in (q_ref, k_ref))
    key_key, query_key = (algebra.dot(x, k, precision, (1, 1)) for x in (k, q))
    for value_head in range(head * groups, (head + 1) * groups):
      state = carry[0, value_head]
      v = algebra.real_float32(v_ref[value_head], length)
      beta = jnp.where(real, algebra.column(beta_ref[value_head]), 0.0)
      decay, from_start, to_end, whole = algebra.decays(
        algebra.real_log_decay(log_decay_ref[value_head], length)
      )
      lower = jnp.where(i > j, key_key * decay * beta, 0.0)
      error = v - algebra.dot(k * from_start, state, precision)
      u = algebra.solve_unit_lower(lower, beta * error, precision)
      out = algebra.dot(q * from_start, state, precision)
      y[value_head] = out + algebra.dot(query_key * decay, u, precision)
      update = algebra.dot(k * to_end, u, precision, (0, 0))
      carry[0, value_head] = state * whole + update


def _refusal(
  device: Device, config: Config, *arguments: Any, precision: lax.Precision
) -> str | None:
  """Why the call does not fit a TPU, or None."""
  q, k, v, _, _, pool, _ = arguments
  return fit.refusal_of_heads(config, q, k, v, pool, precision)


def _heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
  """Heads of a grid step."""
  return Config(block=fit.heads_per_step(*arguments[1:3]))


IMPLEMENTATION = Implementation(Config, _run, _refusal, _heuristic)
