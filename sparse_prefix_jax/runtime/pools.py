"""Pools: allocated for a model, and copied within."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Int32

from sparse_prefix_jax.models.decoder import (
  HybridDecoder,
  Pools,
  map_pools,
)
from sparse_prefix_jax.runtime.in_place import PoolProgram, make_pools


def allocate(model: HybridDecoder, *, slots: int, pages: int) -> Pools:
  """Allocates a model's pools beside its weights, as its kernels take them.

  Args:
    model: Its branches say what a slot and a page are.
    slots: How many state checkpoints; one number names a slot in every branch.
    pages: How many pages; one number names a page in every branch.

  Returns:
    Pools of zeros, one entry per branch.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> states, _, attention, _ = allocate(model, slots=2, pages=3)
    >>> states.pages, attention.slots, len(attention.pages)
    ((), (), 2)
  """
  return make_pools(
    lambda: model.init_pools(slots=slots, pages=pages),
    beside=model.embedding.get_value(),
  )


def are_lost(pools: Pools) -> bool:
  """Whether a failing program took the pools.

  What it returned need not say that it is deleted: reading it fails.

  Args:
    pools: The pools as the last program returned them, or as it took them.
  """
  leaves = jax.tree.leaves(pools)
  if any(leaf.is_deleted() for leaf in leaves):
    return True
  try:
    jax.block_until_ready(leaves)
  except jax.errors.JaxRuntimeError:
    return True
  return False


def _copy_sequence(
  pools: Pools,
  slots: tuple[Int32[Array, "m"], Int32[Array, "m"]],
  page: tuple[Int32[Array, ""], Int32[Array, ""]],
) -> Pools:
  def copy(source: Array, target: Array) -> Callable[[Array], Array]:
    return lambda pool: pool.at[target].set(pool[source])

  return map_pools(pools, copy(*slots), copy(*page))


copy_sequence = PoolProgram(_copy_sequence)
"""Copies slots (from, to) and one page (from, to), bit by bit; for a fork."""
