"""Counting bits that differ, and filling what is free with NaN."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.models.decoder import Pools, map_pools
from sparse_prefix_jax.runtime.in_place import PoolProgram


class ContractError(RuntimeError):
  """An output differs in a bit from what it must equal."""


def differing_bits(x: Any, y: Any) -> int:
  """How many bits of two arrays differ; 0.0 and -0.0 differ in one.

  Args:
    x: Any array.
    y: One of the same shape and dtype.

  Raises:
    ValueError: If shape or dtype differ.

  Example:
    >>> differing_bits(np.float32([1.0, 0.0]), np.float32([1.0, -0.0]))
    1
  """
  x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
  if x.shape != y.shape or x.dtype != y.dtype:
    raise ValueError(
      f"arrays are {x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}; they "
      "must agree in shape and dtype."
    )
  if x.size == 0:
    return 0
  different = np.bitwise_xor(x.view(np.uint8), y.view(np.uint8))
  return int(np.bitwise_count(different).sum())


def litter_of(array: Array) -> Array:
  """What stands where nothing does: not a number, or the largest whole one.

  Args:
    array: Any array.

  Returns:
    One of its shape and dtype.

  Example:
    >>> litter_of(jnp.zeros(2)), litter_of(jnp.zeros(2, jnp.int8))
    (Array([nan, nan], dtype=float32), Array([127, 127], dtype=int8))
  """
  if jnp.issubdtype(array.dtype, jnp.inexact):
    return jnp.full_like(array, jnp.nan)
  if array.dtype == jnp.bool_:
    return jnp.ones_like(array)
  return jnp.full_like(array, jnp.iinfo(array.dtype).max)


def _fill(
  pools: Pools, slots: Int32[Array, "m"], pages: Int32[Array, "n"]
) -> Pools:
  """Litter in some slots and pages; indices past the end are dropped."""

  def fill(index: Array) -> Callable[[Array], Array]:
    return lambda pool: pool.at[index].set(
      litter_of(jnp.zeros((), pool.dtype)), mode="drop"
    )

  return map_pools(pools, fill(slots), fill(pages))


_fill_program = PoolProgram(_fill)


def poison(cache: PrefixCache) -> None:
  """Fills every slot and page that nobody holds with litter, NaN as a rule.

  What reads one of them, or multiplies it by zero, shows.
  """
  index = cache.store.index
  unheld, budget = index.unheld(), index.budget
  slots = np.full(budget.slots or 0, budget.slots, np.int32)
  pages = np.full(budget.pages or 0, budget.pages, np.int32)
  slots[: len(unheld.slots)] = unheld.slots
  pages[: len(unheld.pages)] = unheld.pages
  cache.pools = _fill_program(cache.pools, slots, pages)
