"""Who of a batch waits for a prefix that another one is about to compute."""

from collections.abc import Sequence
from typing import NamedTuple

from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore


class Wave(NamedTuple):
  """What runs now, and what waits.

  Attributes:
    requests: To be opened together.
    shared: Per request, lattice positions that those who wait will resume from.
    later: The others, in their order.
  """

  requests: list[Request]
  shared: list[set[int]]
  later: list[Request]


def next_wave(store: PrefixStore, waiting: Sequence[Request]) -> Wave:
  """The first of the waiting, and all who would gain nothing by waiting.

  A request waits where it shares more with one that runs now than is stored.

  Args:
    store: Matched; nothing changes.
    waiting: At least one.
  """
  running: list[tuple[Request, int, set[int]]] = []
  later: list[Request] = []
  for request in waiting:
    stored = store.match(request).resume_blocks
    depth, shared = _deepest(store, request, stored, running)
    if depth:
      shared.add(depth * store.chunk)
      later.append(request)
    else:
      running.append((request, stored, set()))
  return Wave([r for r, _, _ in running], [s for _, _, s in running], later)


def _deepest(
  store: PrefixStore,
  request: Request,
  stored: int,
  running: Sequence[tuple[Request, int, set[int]]],
) -> tuple[int, set[int]]:
  """The most chunks that a running one computes of a request; 0 for none."""
  best: tuple[int, set[int]] = (0, set())
  if not store.stores:
    return best
  for other, its_stored, shared in running:
    depth = request.shared_chunks(other, store.chunk)
    if depth > max(stored, its_stored, best[0]):
      best = depth, shared
  return best
