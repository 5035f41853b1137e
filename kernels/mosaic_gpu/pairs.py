"""Sums over the channels of pairs of rows, with decays per channel.

With A the inclusive cumulated log decay of each channel, they are

    sum_k X_ik K_jk exp(A_ik - A_jk), i >= j

and no products times a matrix of decays; and exp(-A) overflows. But every pair
i > j is parted by exactly one size of blocks of 1, 2, 4, ... 32 rows: there, i
and j are in neighbouring blocks of one pair, and A_i - A_j is the sum up to i
in its block and behind j in its own. Both are sums of numbers <= 0, the first
belongs to row i and the second to column j, so that one product per size makes
all pairs that it parts. The sums are products with matrices of zeros and ones.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.mosaic_gpu.chunk import WIDTH
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  Ref,
  cut_parts,
  dot,
  dot_parts,
  indices,
  parts,
  stacked,
  store_each,
  tile,
)

_SQUARE = (CHUNK, CHUNK)
_CHANNELS = 128  # of a block at most: shared memory has no room for more


class Block(NamedTuple):
  """Shared memory for b channels: operands, then what products are made of.

  Attributes:
    q: The queries. [c b]
    k: The keys, zero at padding. [c b]
    keys: K^T, zero at padding. [b c]
    steps: Log decays in two parts, one below the other. [2*c b]
    channels: The transposed log decays. [2 b c]
    left: Scaled rows of Q or K in two parts. [2 c b]
    right: Scaled columns of K^T in two parts. [2 b c]
    lower: Matrices of zeros and ones. [2 c c]
  """

  q: Ref
  k: Ref
  keys: Ref
  steps: Ref
  channels: Ref
  left: Ref
  right: Ref
  lower: Ref

  def cut(self, width: int) -> list[Any]:
    """The channels of a head, as many at a time as there is room for."""
    size = self.q.shape[1]
    return [pl.ds(start, size) for start in range(0, width, size)]

  @property
  def tiles(self) -> list[Any]:
    """The channels of the block, as many at a time as one product makes."""
    width = self.q.shape[1]
    return [pl.ds(start, CHUNK) for start in range(0, width, CHUNK)]

  def masks(self, size: Array | int) -> tuple[Ref, Ref]:
    """Which tokens count up to row i, and behind column j, in their blocks.

    Args:
      size: Blocks have 2^size rows.

    Returns:
      The two matrices of `lower`.
    """
    row, column = indices()
    same = (row >> size) == (column >> size)
    until = jnp.where(same & (column <= row), 1.0, 0.0)
    behind = jnp.where(same & (row > column), 1.0, 0.0)
    self.lower[0] = until.astype(jnp.bfloat16)
    self.lower[1] = behind.astype(jnp.bfloat16)
    plgpu.commit_smem()
    return self.lower.at[0], self.lower.at[1]

  def until(self, mask: Ref) -> Float32[Array, "c b"]:
    """Computes exp of the sums of log decays up to each row."""
    pairs = [(mask, part) for part in stacked(self.steps)]
    return jnp.exp(dot(pairs, (CHUNK, self.q.shape[1])))

  def keys_behind(self, mask: Ref, rows: Any) -> Float32[Array, "r c"]:
    """Computes K^T times exp of the sums of log decays behind each column.

    Args:
      mask: It says which tokens are behind each column.
      rows: One of `tiles`.
    """
    pairs = [(self.channels.at[part, rows], mask) for part in range(2)]
    keys = self.keys[rows, :].astype(jnp.float32)
    return keys * jnp.exp(dot(pairs, _SQUARE))


def block(width: int) -> Block:
  """The shared memory to ask for.

  Args:
    width: Channels of a head.
  """
  size = min(width, _CHANNELS)
  operand = functools.partial(tile, width=WIDTH)
  return Block(
    q=operand(CHUNK, size),
    k=operand(CHUNK, size),
    keys=operand(size, CHUNK),
    steps=operand(2 * CHUNK, size),
    channels=operand(2, size, CHUNK),
    left=operand(2, CHUNK, size),
    right=operand(2, size, CHUNK),
    lower=operand(2, CHUNK, CHUNK),
  )


def add(sums: tuple[Array, Array], of: Block) -> tuple[Array, Array]:
  """Adds some channels to the sums: X = K for i > j, and X = Q for i >= j.

  Rows of padding hold anything; what is above the diagonal is zero.

  Args:
    sums: Sums over other channels. [c c] each
    of: `left`, `right` and `lower` are overwritten.
  """
  row, column = indices()

  def level(size: Array, sums: tuple[Array, Array]) -> tuple[Array, ...]:
    """Adds the pairs that blocks of 2^size rows part.

    Args:
      size: Logarithm of the rows of a block.
      sums: Products of keys with keys, and of queries with keys.
    """
    until, behind = of.masks(size)
    into = of.until(until)
    for rows in of.tiles:
      scaled = of.keys_behind(behind, rows)
      for part, value in enumerate(cut_parts(scaled, 2)):
        of.right[part, rows, :] = value
    parted = (row >> (size + 1)) == (column >> (size + 1))
    parted &= (row >> size) > (column >> size)
    added = []
    for source, known in zip((of.k, of.q), sums, strict=True):
      store_each(of.left, cut_parts(source[...].astype(jnp.float32) * into, 2))
      plgpu.commit_smem()
      found = dot_parts(parts(of.left), parts(of.right), CHUNK)
      added.append(known + jnp.where(parted, found, 0.0))
    return tuple(added)

  own = dot([(of.q, of.keys)], _SQUARE)
  key_key, query_key = sums
  query_key += jnp.where(row == column, own, 0.0)
  return lax.fori_loop(0, 6, level, (key_key, query_key))
