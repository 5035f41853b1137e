"""Pools of another size: what is live moves down, then branch by branch.

No more than the slots or the pages of one branch are held twice at a time, and
whatever fails leaves pools whose first slots and pages hold what they held.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from sparse_prefix_jax.models.decoder import Pools, map_pools
from sparse_prefix_jax.runtime.in_place import PoolProgram, place_like

_BATCH = 32


def _copy_some(
  pools: Pools,
  slots: tuple[Int32[Array, "m"], Int32[Array, "m"]],
  pages: tuple[Int32[Array, "m"], Int32[Array, "m"]],
) -> Pools:
  def copy(source: Array, target: Array) -> Callable[[Array], Array]:
    return lambda pool: pool.at[target].set(
      pool.at[source].get(mode="clip"), mode="drop"
    )

  return map_pools(pools, copy(*slots), copy(*pages))


copy_some = PoolProgram(_copy_some)
"""Copies slots and pages (from, to), bit by bit; numbers past the end do
nothing."""


def moved_pools(
  pools: Pools,
  slots: Mapping[int, int],
  pages: Mapping[int, int],
) -> Iterator[Pools]:
  """Copies what gets other numbers, a few at a time.

  Args:
    pools: Donated; whoever iterates keeps what is yielded in their place.
    slots: New slot by old one; no new one is an old one.
    pages: New page by old one, in the same way.

  Yields:
    The pools after each program.
  """
  rest = [_pairs(slots), _pairs(pages)]
  while any(part.shape[1] for part in rest):
    now = [_padded(part[:, :_BATCH]) for part in rest]
    rest = [part[:, _BATCH:] for part in rest]
    pools = copy_some(pools, *((source, target) for source, target in now))
    yield pools


def _pairs(numbers: Mapping[int, int]) -> np.ndarray:
  """Old numbers above new ones. [2 m]"""
  return np.array([[*numbers], [*numbers.values()]], np.int32).reshape(2, -1)


def _padded(pairs: np.ndarray) -> np.ndarray:
  """One shape for every call; what is added lies past the end."""
  past = np.full((2, _BATCH - pairs.shape[1]), np.iinfo(np.int32).max, np.int32)
  return np.concatenate([pairs, past], axis=1)


def resized_pools(pools: Pools, slots: int, pages: int) -> Iterator[Pools]:
  """Shrinks or extends every pool, first those that shrink.

  Args:
    pools: Whoever iterates keeps what is yielded in their place.
    slots: How many there will be; those past the end are gone.
    pages: How many there will be.

  Yields:
    The pools after the slots, or the pages, of each branch.
  """
  branches, wanted = list(pools), {"slots": slots, "pages": pages}
  parts = [
    (wanted[name] > leaves[0].shape[0], i, name)
    for i, kept in enumerate(branches)
    for name in wanted
    if (leaves := jax.tree.leaves(getattr(kept, name)))
  ]
  # First those that give memory back.
  for _, i, name in sorted(parts, key=lambda part: part[0]):
    old = getattr(branches[i], name)
    new = jax.tree.map(partial(_resized, count=wanted[name]), old)
    branches[i] = branches[i]._replace(**{name: new})
    yield tuple(branches)


def _resized(pool: Array, count: int) -> Array:
  """The first rows of a pool, and zeros after them."""
  return pool if pool.shape[0] == count else place_like(_cut, pool, count)


def _cut(pool: Array, count: int) -> Array:
  """Its first rows, and zeros after them, as one program."""
  kept = pool[:count]
  missing = (count - kept.shape[0], *pool.shape[1:])
  return jnp.concatenate([kept, jnp.zeros(missing, pool.dtype)])
