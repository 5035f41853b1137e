"""Tokens sorted by the expert that computes them, in blocks of equal size."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


class Blocks(NamedTuple):
  """Tokens sorted by expert, in blocks of rows that belong to one expert.

  Attributes:
    expert: The expert of each block.
    used: Whether the block holds a token.
    first: Whether it is the first block of its expert.
    source: The row of each place, or the number of rows where it is free.
    place: Where each choice of each row stands among all places of all blocks;
      their number for rows that are not computed. [rows chosen]
  """

  expert: Int32[Array, "blocks"]
  used: Bool[Array, "blocks"]
  first: Bool[Array, "blocks"]
  source: Int32[Array, "blocks block"]
  place: Int32[Array, "rows chosen"]


def sort_into_blocks(
  expert: Int32[Array, "rows chosen"],
  real: Bool[Array, "rows"],
  *,
  experts: int,
  block: int,
) -> Blocks:
  """Sorts the choices of real rows by expert, into blocks.

  Integers alone: every row finds its place, and no bit of a value depends on
  where it is.

  Args:
    expert: The experts that each row chose.
    real: Which rows hold a token.
    experts: How many there are.
    block: Rows of a block.

  Example:
    >>> blocks = sort_into_blocks(
    ...   jnp.array([[2], [0], [2]]), jnp.array([True] * 3), experts=3, block=2
    ... )
    >>> blocks.expert[:2].tolist(), blocks.source[:2].tolist()
    ([0, 2], [[1, 3], [0, 2]])
    >>> blocks.first[:2].tolist()
    [True, True]
  """
  rows, chosen = expert.shape
  expert = jnp.where(real[:, None], expert, experts).reshape(-1)
  order = jnp.argsort(expert, stable=True).astype(jnp.int32)
  counts = jnp.bincount(expert, length=experts + 1)[:experts].astype(jnp.int32)
  blocks = -(-counts // block)
  ends = jnp.cumsum(blocks, dtype=jnp.int32)
  before = jnp.cumsum(counts, dtype=jnp.int32) - counts
  # Among the sorted, a token's rank within its expert is what remains of its
  # own number after all tokens of the experts before.
  shift = (ends - blocks) * block - before
  many = _most_blocks(rows * chosen, experts, block)
  sorted_expert = expert[order]
  place = jnp.arange(rows * chosen, dtype=jnp.int32)
  place = place + shift[jnp.minimum(sorted_expert, experts - 1)]
  place = jnp.where(sorted_expert < experts, place, many * block)
  source = jnp.full(many * block, rows, jnp.int32)
  source = source.at[place].set(order // chosen, mode="drop")
  number = jnp.arange(many, dtype=jnp.int32)
  owner = jnp.searchsorted(ends, number, side="right")
  owner, used = jnp.minimum(owner, experts - 1), number < ends[-1]
  return Blocks(
    expert=owner.astype(jnp.int32),
    used=used,
    first=used & (number == (ends - blocks)[owner]),
    source=source.reshape(many, block),
    place=jnp.zeros_like(place).at[order].set(place).reshape(rows, chosen),
  )


def _most_blocks(choices: int, experts: int, block: int) -> int:
  """How many blocks so many choices may fill; two, for a loop to stay one."""
  most = (choices + min(experts, choices) * (block - 1)) // block
  return max(2, min(choices, most))
