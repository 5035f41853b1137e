"""Slots and pages copied to the memory of the host, and back, bit by bit.

A few at a time by programs of one shape; the host copies hold only what was
named, so that their size is that of the slots and pages.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int32

from sparse_prefix_jax.models.decoder import Pools, map_pools
from sparse_prefix_jax.runtime.in_place import PoolProgram

_BATCH = 8
_PAST = np.iinfo(np.int32).max


class HostCopy(NamedTuple):
  """Some slots and pages of every branch, in the memory of the host.

  Attributes:
    parts: Trees like the pools, of NumPy arrays; the first rows of each batch
      are what was named.
    slots: How many slots.
    pages: How many pages.
  """

  parts: tuple[Any, ...]
  slots: int
  pages: int


def _take(
  pools: Pools, slots: Int32[Array, "m"], pages: Int32[Array, "m"]
) -> Pools:
  return map_pools(
    pools,
    lambda pool: pool.at[slots].get(mode="clip"),
    lambda pool: pool.at[pages].get(mode="clip"),
  )


def _put(
  pools: Pools,
  slots: Int32[Array, "m"],
  pages: Int32[Array, "m"],
  parts: Pools,
) -> Pools:
  def into(numbers: Array) -> Callable[[Array, Array], Array]:
    return lambda pool, part: pool.at[numbers].set(part, mode="drop")

  return tuple(
    kept._replace(
      slots=jax.tree.map(into(slots), kept.slots, part.slots),
      pages=jax.tree.map(into(pages), kept.pages, part.pages),
    )
    for kept, part in zip(pools, parts, strict=True)
  )


take = jax.jit(_take)
"""Copies of some slots and pages; numbers past the end give the last one."""
put = PoolProgram(_put)
"""Writes some slots and pages; numbers past the end do nothing."""


def copy_to_host(
  pools: Pools, slots: Sequence[int], pages: Sequence[int]
) -> HostCopy:
  """Copies slots and pages to the host; waits until they are there.

  Args:
    pools: They stay as they are.
    slots: Numbers of slots.
    pages: Numbers of pages.

  Returns:
    The copies, to be given to `copy_back`.
  """
  parts = []
  for some_slots, some_pages in _batches(slots, pages):
    taken = take(pools, _padded(some_slots), _padded(some_pages))
    copies = jax.device_get(taken)
    parts.append(_cut(copies, len(some_slots), len(some_pages)))
  return HostCopy(tuple(parts), len(slots), len(pages))


def copy_back(
  pools: Pools, copy: HostCopy, slots: Sequence[int], pages: Sequence[int]
) -> Iterator[Pools]:
  """Writes what was copied to the host into slots and pages.

  Args:
    pools: Donated; whoever iterates keeps what is yielded in their place.
    copy: Of `copy_to_host`.
    slots: Where its slots go, in their order.
    pages: Where its pages go, in their order.

  Yields:
    The pools after each program.

  Raises:
    ValueError: If it holds other numbers of slots or pages.
  """
  if (len(slots), len(pages)) != (copy.slots, copy.pages):
    raise ValueError(
      f"the copy holds {copy.slots} slots and {copy.pages} pages; "
      f"{len(slots)} and {len(pages)} are to be written."
    )
  batches = _batches(slots, pages)
  for part, (some_slots, some_pages) in zip(copy.parts, batches, strict=True):
    pools = put(pools, _padded(some_slots), _padded(some_pages), _filled(part))
    yield pools


def _batches(
  slots: Sequence[int], pages: Sequence[int]
) -> list[tuple[Sequence[int], Sequence[int]]]:
  """The same few slots and pages for every program."""
  most = max(len(slots), len(pages))
  starts = range(0, most, _BATCH)
  return [(slots[i : i + _BATCH], pages[i : i + _BATCH]) for i in starts]


def _padded(numbers: Sequence[int]) -> np.ndarray:
  """One shape for every call; what is added lies past the end."""
  past = (_PAST,) * (_BATCH - len(numbers))
  return np.array([*numbers, *past], np.int32)


def _cut(parts: Pools, slots: int, pages: int) -> Pools:
  """Copies of the rows that were named, so that the rest is freed."""
  return map_pools(
    parts, lambda part: part[:slots].copy(), lambda part: part[:pages].copy()
  )


def _filled(parts: Pools) -> Pools:
  """One shape for every call again; nobody reads what is added."""

  def fill(part: np.ndarray) -> np.ndarray:
    rows = [(0, _BATCH - part.shape[0])] + [(0, 0)] * (part.ndim - 1)
    return np.pad(part, rows)

  return map_pools(parts, fill, fill)
