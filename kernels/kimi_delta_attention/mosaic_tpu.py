"""Kimi delta attention as a Mosaic TPU kernel: the cell of one chunk.

A is the inclusive cumulated log decay, per key channel. exp(-A) overflows over
a chunk, so the decayed products of keys

    P_ij = sum_d x_id k_jd exp(A_id - A_jd),   i >= j

are made in blocks of 16 rows, with every exponent <= 0: in a diagonal block
channel by channel, and below it with the start r of the block row in between,
exp(A_i - A_r) on the left and exp(A_r - A_j) on the right. The rest is the
gated delta rule, with L = strictly lower (beta P):

    U = (I + L)^-1 beta (V - (exp(A) K) S)
    O = (exp(A) Q) S + P_q U
    S' = exp(A_c) S + (exp(A_c - A) K)^T U
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
  packed_scan,
  refusal_of_heads,
  row_per_head,
)
from sparse_prefix_jax.kernels.mosaic_tpu_algebra import (
  BLOCK,
  column,
  dot,
  in_blocks,
  iota,
  real_float32,
  real_rows,
  settle_resets,
  solve_unit_lower,
)


def _run(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv k"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision,
  config: Config,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """The operation as one kernel; arguments of `kimi_delta_attention`."""
  xs = [Operand(heads_first(x), 1) for x in (q, k, v, log_decay)]
  xs.append(Operand(row_per_head(beta), 1))
  out = jax.ShapeDtypeStruct(xs[2].array.shape, jnp.float32)
  out, pool = packed_scan(
    functools.partial(_cell, precision),
    xs,
    Operand(out, 1),
    Operand(pool, 1),
    chunks,
    blocks=k.shape[2] // config.block,
    config=config,
    name="kimi_delta_attention",
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
  q_ref, k_ref, v_ref, log_decay_ref, beta_ref = xs
  heads, size = k_ref.shape[:2]
  groups = v_ref.shape[0] // heads
  real = real_rows(size, length)
  i, j = (iota((size, size), axis) for axis in (0, 1))
  for head in range(heads):
    q, k = (real_float32(x[head], length) for x in (q_ref, k_ref))
    for value_head in range(head * groups, (head + 1) * groups):
      state, v = carry[0, value_head], real_float32(v_ref[value_head], length)
      beta = jnp.where(real, column(beta_ref[value_head]), 0.0)
      log_decay = real_float32(log_decay_ref[value_head], length)
      log_decay = settle_resets(log_decay)
      key_key, query_key = _decayed_products((k, q), k, log_decay, precision)
      before, after = (_sums(log_decay, x) for x in (j <= i, j > i))
      lower = jnp.where(i > j, key_key * beta, 0.0)
      error = v - dot(k * jnp.exp(before), state, precision)
      u = solve_unit_lower(lower, beta * error, precision)
      out = dot(q * jnp.exp(before), state, precision)
      y[value_head] = out + dot(query_key, u, precision)
      whole = column(jnp.exp(before[size - 1 :]))
      update = dot(k * jnp.exp(after), u, precision, (0, 0))
      carry[0, value_head] = state * whole + update


def _sums(log_decay: Float32[Array, "c k"], chosen: Array) -> Array:
  """Row i: the sum of the rows that `chosen` [c c] names in its row i."""
  chosen = jnp.where(chosen, 1.0, 0.0)
  return dot(chosen, log_decay, lax.Precision.HIGHEST)


def _decayed_products(
  lefts: Sequence[Float32[Array, "c k"]],
  k: Float32[Array, "c k"],
  log_decay: Float32[Array, "c k"],
  precision: lax.Precision,
) -> list[Float32[Array, "c c"]]:
  """P of each of `lefts` with the keys; zero above the diagonal.

  Args:
    lefts: Keys, queries.
    k: Keys.
    log_decay: Finite.
    precision: Of the products.
  """
  size = k.shape[0]
  i, j = (iota((size, size), axis) for axis in (0, 1))
  same_block = i // BLOCK == j // BLOCK
  # exp(A_i - A_r), r before the block of i: one for every block row.
  from_block = jnp.exp(_sums(log_decay, same_block & (j <= i)))
  products = [[jnp.zeros((BLOCK, size), jnp.float32)] for _ in lefts]
  for start in range(BLOCK, size, BLOCK):
    # exp(A_r - A_j) for the keys before the block row, and none for the rest.
    to_block = jnp.exp(_sums(log_decay, (j > i) & (j < start)))
    keys = jnp.where(real_rows(size, start), k * to_block, 0.0)
    rows = slice(start, start + BLOCK)
    for left, blocks in zip(lefts, products):
      block = (left * from_block)[rows]
      blocks.append(dot(block, keys, precision, (1, 1)))
  below = [jnp.concatenate(blocks, axis=0) for blocks in products]
  diagonal = _diagonal_blocks(lefts, k, log_decay)
  return [x + y for x, y in zip(below, diagonal)]


def _diagonal_blocks(
  lefts: Sequence[Float32[Array, "c k"]],
  k: Float32[Array, "c k"],
  log_decay: Float32[Array, "c k"],
) -> list[Float32[Array, "c c"]]:
  """P within the blocks of 16 rows, one column of all blocks at a time.

  From the last column to the first, the log decay between its key and the rows
  below grows by one token: a sum over its own segment.
  """
  size = k.shape[0]
  i, j = (iota((size, size), axis) for axis in (0, 1))
  in_block = iota(k.shape, 0) % BLOCK
  segment = jnp.zeros(k.shape, jnp.float32)
  products = [jnp.zeros((size, size), jnp.float32) for _ in lefts]
  for key in reversed(range(BLOCK)):
    if key + 1 < BLOCK:
      grown = segment + in_blocks(log_decay, key + 1)
      segment = jnp.where(in_block > key, grown, 0.0)
    keys = in_blocks(k, key) * jnp.exp(segment)
    keys = jnp.where(in_block >= key, keys, 0.0)
    here = j == i - i % BLOCK + key
    for index, left in enumerate(lefts):
      product = jnp.sum(left * keys, axis=1, keepdims=True)
      products[index] = jnp.where(here, product, products[index])
  return products


def _refusal(
  device: Device, config: Config, *arguments: Any, precision: lax.Precision
) -> str | None:
  q, k, v, _, _, pool, _ = arguments
  return refusal_of_heads(config, q, k, v, pool, precision)


def _heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
  return Config()


IMPLEMENTATION = Implementation(Config, _run, _refusal, _heuristic)
