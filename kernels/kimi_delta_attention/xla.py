"""Kimi Delta Attention in plain XLA operations: runs everywhere.

The chunk is that of `chunk_algebra` with decays per channel:

    L_ij = beta_i sum_k K_ik K_jk exp(A_ik - A_jk) for i > j
    P_ij =        sum_k Q_ik K_jk exp(A_ik - A_jk) for i >= j

exp(-A) overflows over a chunk, so neither is one product. Rows stand in blocks
of 16. Between blocks, A_i - A_j is the sum of what lies before i in its block,
of whole blocks between, and of what lies behind j in its own: three sums of
numbers <= 0, of which the first goes to the row and the others to the column.
Inside a block every pair has its own exponent.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from sparse_prefix_jax.kernels import chunk_algebra as algebra
from sparse_prefix_jax.kernels.chunks import Chunks, packed_scan, step_rows


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
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Scans over the chunks; it is called as `kimi_delta_attention` is."""

  def cell(state: Array, x: Any, length: Array) -> tuple[Array, Array]:
    return chunk(state, *x, length=length, precision=precision)

  return packed_scan(cell, pool, (q, k, v, log_decay, beta), chunks)


def step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv k"],
  beta: Float32[Array, "b hv"],
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """Takes one token of b rows; called as `kimi_delta_attention_step` is."""
  xs = (q, k, v, log_decay, beta)
  return step_rows(algebra.step, pool, xs, read, write)


def chunk(
  state: Float32[Array, "hv k v"],
  q: Float[Array, "c h k"],
  k: Float[Array, "c h k"],
  v: Float[Array, "c hv v"],
  log_decay: Float32[Array, "c hv k"],
  beta: Float32[Array, "c hv"],
  length: Array,
  precision: lax.Precision,
) -> tuple[Float32[Array, "hv k v"], Float32[Array, "c hv v"]]:
  """Advances one state over one chunk of which `length` tokens are real.

  Everything is float32 from here on; padding is selected to zero keys, values,
  strengths and decays, which leaves a state as it is.

  Returns:
    The state after the real tokens, and the outputs; rows of padding hold
    finite numbers of no meaning.
  """
  real = jnp.arange(q.shape[0], dtype=jnp.int32) < length
  q, k, v, log_decay, beta = (
    algebra.heads_first(x, real) for x in (q, k, v, log_decay, beta)
  )
  dot = algebra.dot_at(precision)
  q, k = (algebra.repeat_heads(x, v.shape[0]) for x in (q, k))
  within, behind, total = _block_sums(algebra.settle_resets(log_decay))
  key_key, scores = _pair_sums(q, k, log_decay, (within, behind, total), dot)
  decay_in = jnp.exp(_merge(within + _before(total)[:, :, None]))
  decay_out = jnp.exp(_merge(behind + _after(total)[:, :, None]))
  x_v, x_k = algebra.solve_delta_rule(key_key, k, v, beta, decay_in, dot)
  prepared = algebra.Prepared(
    x_v=x_v,
    x_k=x_k,
    q_in=q * decay_in,
    scores=scores,
    k_out=k * decay_out,
    decay=decay_in[:, -1, :, None],
  )
  return algebra.advance(state, prepared, dot)


def _split(x: Float32[Array, "hv c k"]) -> Float32[Array, "hv blocks r k"]:
  """Puts rows in blocks of 16, or all in one if there are fewer."""
  block = min(algebra.BLOCK, x.shape[1])
  return x.reshape(x.shape[0], -1, block, x.shape[2])


def _merge(x: Float32[Array, "hv blocks r k"]) -> Float32[Array, "hv c k"]:
  return x.reshape(x.shape[0], -1, x.shape[3])


def _block_sums(
  log_decay: Float32[Array, "hv c k"],
) -> tuple[Array, Array, Float32[Array, "hv blocks k"]]:
  """Sums up to each row within its block, behind it, and over whole blocks.

  Each is a sum of its own, never a difference of two.
  """
  blocks = _split(log_decay)
  within = jnp.cumsum(blocks, axis=2)
  from_here = jnp.flip(jnp.cumsum(jnp.flip(blocks, 2), axis=2), 2)
  behind = jnp.concatenate(
    [from_here[:, :, 1:], jnp.zeros_like(blocks[:, :, :1])], axis=2
  )
  return within, behind, within[:, :, -1]


def _before(total: Float32[Array, "hv blocks k"]) -> Array:
  """Sums the blocks before each: 0, T_0, T_0 + T_1, ..."""
  shifted = jnp.concatenate(
    [jnp.zeros_like(total[:, :1]), total[:, :-1]], axis=1
  )
  return jnp.cumsum(shifted, axis=1)


def _after(total: Float32[Array, "hv blocks k"]) -> Array:
  """Sums the blocks behind each."""
  return jnp.flip(_before(jnp.flip(total, 1)), 1)


def _pair_sums(
  q: Float32[Array, "hv c k"],
  k: Float32[Array, "hv c k"],
  log_decay: Float32[Array, "hv c k"],
  sums: tuple[Array, Array, Array],
  dot: algebra.Dot,
) -> tuple[Float32[Array, "hv c c"], Float32[Array, "hv c c"]]:
  """Computes sum_k X_ik K_jk exp(A_ik - A_jk) for i >= j, X = K and Q."""
  within, behind, total = sums
  log_decay = algebra.settle_resets(log_decay)
  own = _own_block(*(_split(x) for x in (q, k, log_decay)))
  block, count = own[0].shape[-1], total.shape[1]
  rows: tuple[list[Array], list[Array]] = ([], [])
  for index in range(count):
    # Columns of earlier blocks, decayed to where this block begins.
    decayed = jnp.exp(behind[:, :index] + _after(total[:, :index])[:, :, None])
    columns = _split(k)[:, :index] * decayed
    columns = columns.reshape(k.shape[0], index * block, k.shape[2])
    shape = k.shape[0], block, (count - 1 - index) * block
    right = jnp.zeros(shape, jnp.float32)
    for x, blocks, out in zip((k, q), own, rows):
      left = _split(x)[:, index] * jnp.exp(within[:, index])
      earlier = dot(left, columns.swapaxes(1, 2))
      out.append(jnp.concatenate([earlier, blocks[:, index], right], axis=-1))
  key_key, query_key = (jnp.concatenate(out, axis=1) for out in rows)
  return key_key, query_key


def _own_block(
  q: Float32[Array, "hv blocks r k"],
  k: Float32[Array, "hv blocks r k"],
  log_decay: Float32[Array, "hv blocks r k"],
) -> tuple[Float32[Array, "hv blocks r r"], Float32[Array, "hv blocks r r"]]:
  """Sums the pairs inside each block, a column j at a time, from the last.

  segment_i = sum over j < l <= i of log_decay_l gains the row behind j when j
  moves up; rows above j are masked before exp, for gradients.
  """
  row = jnp.arange(k.shape[2], dtype=jnp.int32)[:, None]

  def column(
    segment: Array, x: tuple[Array, Array, Array]
  ) -> tuple[Array, tuple[Array, Array]]:
    j, key, next_decay = x
    below: Bool[Array, "r 1"] = row > j
    segment = jnp.where(below, segment + next_decay[:, :, None], 0.0)
    decay = jnp.exp(jnp.where(row >= j, segment, -jnp.inf))
    decayed = key[:, :, None] * decay
    return segment, (jnp.sum(k * decayed, -1), jnp.sum(q * decayed, -1))

  size = k.shape[2]
  keys = jnp.moveaxis(k, 2, 0)
  behind = jnp.concatenate(
    [log_decay[:, :, 1:], jnp.zeros_like(log_decay[:, :, :1])], axis=2
  )
  xs = (jnp.arange(size, dtype=jnp.int32), keys, jnp.moveaxis(behind, 2, 0))
  _, columns = lax.scan(column, jnp.zeros_like(k), xs, reverse=True)
  key_key, query_key = (jnp.moveaxis(x, 0, -1) for x in columns)
  return key_key, query_key
