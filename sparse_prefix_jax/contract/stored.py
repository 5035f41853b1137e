"""What a cache holds for later requests, compared with cold runs."""

from typing import NamedTuple

import jax
import numpy as np

from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.contract.bits import differing_bits
from sparse_prefix_jax.contract.cold_runs import ColdRuns


class Compared(NamedTuple):
  """What a comparison found.

  Attributes:
    bits: That differ.
    size: Bytes that were compared.
  """

  bits: int
  size: int


def compare_stored(cache: PrefixCache, cold: ColdRuns) -> Compared:
  """Compares every state and page in the tree of a cache.

  Args:
    cache: Of token ids.
    cold: Runs of its model.
  """
  arrays = [
    (paged, np.asarray(leaf))
    for kept in cache.pools
    for paged, part in ((False, kept.slots), (True, kept.pages))
    for leaf in jax.tree.leaves(part)
  ]
  bits = size = 0
  for state in cache.store.index.states:
    nodes = list(state.node.upwards())[::-1]
    keys = b"".join(n.key for n in nodes if isinstance(n.key, bytes))
    run = cold.prefill(np.frombuffer(keys, ">i4").astype(np.int32))
    for node in nodes:
      held = node.state.number if node.state else None
      for (paged, pool), expected in zip(arrays, run.pools, strict=True):
        number = node.page if paged else held
        if number is not None:
          x, y = pool[number], expected[node.depth - 1]
          bits, size = bits + differing_bits(x, y), size + x.nbytes
  return Compared(bits, size)
