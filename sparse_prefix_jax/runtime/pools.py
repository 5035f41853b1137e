"""Pools: how many slots and pages fit, and copies between them."""

from collections.abc import Callable

from jaxtyping import Array, Int32

from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import (
  HybridDecoder,
  Pools,
  map_pools,
)
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.runtime.in_place import PoolProgram, make_pools


def split_capacity(
  config: ModelConfig, capacity: int, state_share: float
) -> tuple[int, int]:
  """How many slots and pages to allocate within `capacity` bytes.

  Args:
    config: Gives the bytes of a state checkpoint and of a page.
    capacity: Bytes of device memory for both.
    state_share: Share of them for states; a model without attention, or
      without recurrent layers, gives all to what it has.

  Returns:
    slots and pages, together at most `capacity` bytes.
  """
  slot, page = state_bytes(config), page_bytes(config)
  longest = -(-config.max_length // config.chunk)
  if page == 0:  # pages are only names then: as many as anyone could use
    slots = capacity // slot
    return slots, max(slots, 1) * longest
  if slot == 0:
    pages = capacity // page
    return max(pages, 2), pages
  slots = int(capacity * state_share) // slot
  return slots, (capacity - slots * slot) // page


def allocate(model: HybridDecoder, *, slots: int, pages: int) -> Pools:
  """The pools of a model, beside its weights, in the order its kernels take.

  Args:
    model: Its layers say what a slot and a page are.
    slots: State checkpoints; one number names a slot in every layer.
    pages: Pages of keys and values; one number names a page in every layer.

  Returns:
    Zeros, one entry per layer.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> len(allocate(model, slots=2, pages=3))
    2
  """
  return make_pools(
    lambda: model.init_pools(slots=slots, pages=pages),
    beside=model.embedding.get_value(),
  )


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
