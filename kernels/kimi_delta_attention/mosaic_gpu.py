"""kimi_delta_attention on GPU: a kernel per chunk and head, then the scan.

As gated_delta_rule, with decays per channel of the keys, so that

    L_ij = beta_i sum_k K_ik K_jk exp(A_ik - A_jk) for i > j
    P_ij =        sum_k Q_ik K_jk exp(A_ik - A_jk) for i >= j

are no products times a matrix of decays; and exp(-A) overflows. But every pair
i > j is parted by exactly one size of blocks of 1, 2, 4, ... 32 rows: there, i
and j are in neighbouring blocks of one pair, and A_i - A_j is the sum up to i
in its block and behind j in its own. Both are sums of numbers <= 0, the first
belongs to row i and the second to column j, so that one product per size makes
all pairs that it parts. The sums are products with matrices of zeros and ones.

Q and K come out of it with their decays in them, hence in two bfloat16 parts.
(With one, the state is off by 1.5e-2 after three chunks of correlated keys that
hardly decay: what K^T U adds has to cancel what is there.)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Float32

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
  dot_parts,
  indices,
  launch,
  load,
  new,
  parts,
  split,
  stacked,
  store_parts,
  tile,
  vector,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import real_rows

_SQUARE = (CHUNK, CHUNK)


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
  """The operation in two launches.

  Arguments of `kimi_delta_attention`. `precision` says nothing here: operands
  are bfloat16 parts, as many as the error of 1e-2 needs.

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


IMPLEMENTATION = implementation(packed, value_bytes=4, operands=5, widest=128)


class _Operands(NamedTuple):
  """What `prepare` reads.

  Attributes:
    lengths: [n]
    q: [n c h k]
    k: [n c h k]
    keys: K^T, zero at padding. [n h k c]
    v: [n c hv v]
    beta: Zero at padding. [n hv c]
    steps: Log decays in two parts, one below the other. [n hv 2*c k]
    channels: The same, transposed. [n hv 2*k c]
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
  """Shared memory of `_prepare`: operands, then what products are made of.

  Attributes:
    q: [c k]
    k: Zero at padding, once all are loaded. [c k]
    keys: [k c]
    steps: Log decays in two parts. [2*c k]
    channels: The same, transposed. [2*k c]
    beta: Strengths, to lie along rows. [c]
    beta_again: The same, to lie along columns. [c]
    decay: exp(A_c). [k]
    left: Scaled rows of Q or K in two parts. [2 c k]
    right: Scaled columns of K^T in two parts. [2 k c]
    lower: Matrices of zeros and ones; then L in two parts. [2 c c]
    arrived: Barrier of all loads but values.
    loading: Barrier of values.
  """

  q: Ref
  k: Ref
  keys: Ref
  steps: Ref
  channels: Ref
  beta: Ref
  beta_again: Ref
  decay: Ref
  left: Ref
  right: Ref
  lower: Ref
  arrived: Ref
  loading: Ref


def _log_decays(
  log_decay: Float32[Array, "n c hv k"], real: Bool[Array, "n c"]
) -> dict[str, Array]:
  """`steps` and `channels`, zero at padding, -inf as RESET.

  Args:
    log_decay: As callers give it.
    real: Which rows hold tokens.
  """
  log_decay = jnp.where(log_decay == -jnp.inf, algebra.RESET, log_decay)
  log_decay = jnp.where(real[:, :, None, None], log_decay, 0.0)
  log_decay = log_decay.swapaxes(1, 2)
  # XLA may leave out a cast to bfloat16 and back, but not this.
  high = lax.reduce_precision(log_decay, 8, 7)
  both = [x.astype(jnp.bfloat16) for x in (high, log_decay - high)]
  return {
    "steps": jnp.concatenate(both, axis=2),
    "channels": jnp.concatenate([x.swapaxes(2, 3) for x in both], axis=2),
  }


def prepare(of: _Operands, config: MosaicGpuConfig) -> state_scan.Factors:
  """The factors of all chunks; those of inactive ones are left unwritten.

  Args:
    of: Arrays.
    config: Says whether the interpreter runs it.
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
    q=tile(CHUNK, width),
    k=tile(CHUNK, width),
    keys=tile(width, CHUNK),
    steps=tile(2 * CHUNK, width),
    channels=tile(2 * width, CHUNK),
    beta=gate,
    beta_again=gate,
    decay=vector(width),
    left=tile(2, CHUNK, width),
    right=tile(2, width, CHUNK),
    lower=tile(2, CHUNK, CHUNK),
    arrived=plgpu.Barrier(num_arrivals=7),
    loading=plgpu.Barrier(),
  )
  *made, decay = launch(
    _prepare,
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


def _prepare(of: _Operands, results: list[Ref], buffers: _Buffers) -> None:
  """One chunk and value head: all of `Factors` but the scales.

  Args:
    of: In global memory.
    results: Likewise: Q, K, P, X_v, X_k and decays.
    buffers: In shared memory.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  length = of.lengths[chunk]

  @pl.when(length > 0)
  def _() -> None:
    key_head = head // (of.v.shape[2] // of.k.shape[2])
    copies = (
      (of.q.at[chunk, :, key_head], buffers.q),
      (of.k.at[chunk, :, key_head], buffers.k),
      (of.keys.at[chunk, key_head], buffers.keys),
      (of.steps.at[chunk, head], buffers.steps),
      (of.channels.at[chunk, head], buffers.channels),
      (of.beta.at[chunk, head], buffers.beta),
      (of.beta.at[chunk, head], buffers.beta_again),
    )
    load(copies, buffers.arrived)
    pl.when(length < CHUNK)(lambda: algebra.clear_padding(buffers.k, length))
    _scaled(results, buffers, length)
    _chunk(of, results, buffers, length)


def _scaled(results: list[Ref], buffers: _Buffers, length: Array) -> None:
  """Writes exp(A) Q, exp(A_c - A) K and exp(A_c).

  Args:
    results: As in `_prepare`.
    buffers: `lower` and `decay` are overwritten.
    length: Real tokens; Q is selected to zero behind them.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  queries, keys, *_, decay = results
  until, behind = _masks(buffers, 6)
  q = buffers.q[...].astype(jnp.float32) * _until(buffers, until)
  row = lax.broadcasted_iota(jnp.int32, q.shape, 0)
  q = jnp.where(row < length, q, jnp.zeros_like(q))
  for part, value in enumerate(split(q, 2)):
    queries[chunk, pl.ds(part * CHUNK, CHUNK), head] = value
  for rows in _blocks(buffers):
    scaled = buffers.keys[rows, :].astype(jnp.float32)
    scaled = scaled * _behind(buffers, behind, rows)
    rest = pl.ds(buffers.keys.shape[0] + rows.start, CHUNK)
    for part, value in zip((rows, rest), split(scaled, 2), strict=True):
      keys[chunk, head, part] = value
    total = buffers.channels[rows, :].astype(jnp.float32)
    total = total + buffers.channels[rest, :].astype(jnp.float32)
    buffers.decay[rows] = jnp.exp(jnp.sum(total, axis=1))
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(buffers.decay, decay.at[chunk, head])


def _chunk(
  of: _Operands, results: list[Ref], buffers: _Buffers, length: Array
) -> None:
  """P and X, in the notation of the module.

  Args:
    of: As in `_prepare`.
    results: As in `_prepare`.
    buffers: All that products are made of is overwritten.
    length: Real tokens.
  """
  chunk, head = lax.axis_index("chunk"), lax.axis_index("head")
  _, _, attention, values, corrections, _ = results
  key_key, query_key = _pairs(buffers)
  algebra.emit_scores(query_key, length, attention.at[chunk, head])
  lower = algebra.lower_of(key_key, buffers.beta, length)
  # What the pairs were made of is free: parts of the inverse go there.
  work = algebra.Work(
    buffers.lower,
    buffers.right.at[:, pl.ds(0, CHUNK), :],
    buffers.left.at[:, :, pl.ds(0, CHUNK)],
  )
  inverse = algebra.invert_unit_lower(lower, work)
  inverse = inverse * along_columns(buffers.beta_again[...], CHUNK)
  pair = of.v.at[chunk, :, head], values.at[chunk, :, head]
  algebra.solve_values(
    inverse, pair, length, buffers.lower.at[0], buffers.loading, work
  )
  until, _ = _masks(buffers, 6)
  scaled = buffers.k[...].astype(jnp.float32) * _until(buffers, until)
  store_parts(work.inverse, inverse, 2)
  store_parts(buffers.left, scaled, 2)
  plgpu.commit_smem()
  width = buffers.k.shape[1]
  solved = dot_parts(parts(work.inverse), parts(buffers.left), width)
  corrections[chunk, head] = solved.astype(jnp.bfloat16)
  plgpu.wait_smem_to_gmem(0)


def _blocks(buffers: _Buffers) -> list[Any]:
  """The channels, 64 at a time."""
  width = buffers.keys.shape[0]
  return [pl.ds(start, CHUNK) for start in range(0, width, CHUNK)]


def _masks(buffers: _Buffers, size: Array | int) -> tuple[Ref, Ref]:
  """Which tokens l count up to row i, and behind column j, in their blocks.

  Args:
    buffers: `lower` receives them.
    size: Blocks have 2^size rows.
  """
  row, column = indices()
  same = (row >> size) == (column >> size)
  until = jnp.where(same & (column <= row), 1.0, 0.0)
  behind = jnp.where(same & (row > column), 1.0, 0.0)
  buffers.lower[0] = until.astype(jnp.bfloat16)
  buffers.lower[1] = behind.astype(jnp.bfloat16)
  plgpu.commit_smem()
  return buffers.lower.at[0], buffers.lower.at[1]


def _until(buffers: _Buffers, mask: Ref) -> Float32[Array, "c k"]:
  """Exp of the sums of log decays up to each row."""
  pairs = [(mask, part) for part in stacked(buffers.steps)]
  return jnp.exp(dot(pairs, (CHUNK, buffers.q.shape[1])))


def _behind(buffers: _Buffers, mask: Ref, rows: Any) -> Float32[Array, "r c"]:
  """Exp of the sums of log decays behind each column, for some channels."""
  second = pl.ds(buffers.keys.shape[0] + rows.start, CHUNK)
  pairs = [(buffers.channels.at[part], mask) for part in (rows, second)]
  return jnp.exp(dot(pairs, _SQUARE))


def _pairs(
  buffers: _Buffers,
) -> tuple[Float32[Array, "c c"], Float32[Array, "c c"]]:
  """sum_k X_ik K_jk exp(A_ik - A_jk), X = K for i > j and X = Q for i >= j.

  Rows of padding hold anything; what is above the diagonal is zero.

  Args:
    buffers: `left`, `right` and `lower` are overwritten.
  """
  row, column = indices()

  def level(size: Array, sums: tuple[Array, Array]) -> tuple[Array, ...]:
    """Adds the pairs that blocks of 2^size rows part.

    Args:
      size: Logarithm of the rows of a block.
      sums: Of keys with keys, and of queries with keys.
    """
    until, behind = _masks(buffers, size)
    into = _until(buffers, until)
    for rows in _blocks(buffers):
      scaled = buffers.keys[rows, :].astype(jnp.float32)
      scaled = scaled * _behind(buffers, behind, rows)
      for part, value in enumerate(split(scaled, 2)):
        buffers.right[part, rows, :] = value
    parted = (row >> (size + 1)) == (column >> (size + 1))
    parted &= (row >> size) > (column >> size)
    added = []
    for source, known in zip((buffers.k, buffers.q), sums, strict=True):
      store_parts(buffers.left, source[...].astype(jnp.float32) * into, 2)
      plgpu.commit_smem()
      found = dot_parts(parts(buffers.left), parts(buffers.right), CHUNK)
      added.append(known + jnp.where(parted, found, 0.0))
    return tuple(added)

  own = dot([(buffers.q, buffers.keys)], _SQUARE)
  own = jnp.where(row == column, own, 0.0)
  key_key, query_key = lax.fori_loop(0, 6, level, (jnp.zeros_like(own), own))
  return key_key, query_key
