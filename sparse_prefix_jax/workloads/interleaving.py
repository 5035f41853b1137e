"""The paper's order of requests: groups whose requests arrive at random."""

import dataclasses
import heapq

import numpy as np

from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.workloads.request import (
  Trace,
  check_number,
  reordered,
)


def interleave(trace: Trace, seed: int = 42) -> Trace:
  """Interleaves the groups of a trace as independent Poisson arrivals.

  Groups in order of first appearance are shuffled; each draws its first arrival
  from Exponential(1), in shuffled order. Then the group with the earliest
  arrival emits its next request and, if it has more, adds a new draw to its
  arrival. Shuffle and draws come from one `RandomState(seed)`.

  Args:
    trace: requests, each group in its own order.
    seed: chooses the draws, from 0 to 2**32 - 1; the paper's is 42.

  Returns:
    The same requests in the new order.

  Raises:
    ValueError: the seed is no integer from 0 to 2**32 - 1, or `trace` is none.

  >>> from sparse_prefix_jax.workloads import token_trace
  >>> trace = token_trace("two", [[1], [2], [3], [4]], [0, 0, 1, 1])
  >>> [request.index for request in interleave(trace, seed=3).requests]
  [2, 3, 0, 1]
  """
  check_class("trace", trace, Trace, "of `token_trace` or a file")
  check_number("seed", seed, 0, 2**32)
  random = np.random.RandomState(seed)
  members: dict[int, list[int]] = {}
  for position, request in enumerate(trace.requests):
    members.setdefault(request.group, []).append(position)
  groups = list(members)
  random.shuffle(groups)
  queue = [
    (random.exponential(1.0), place, members[group])
    for place, group in enumerate(groups)
  ]
  heapq.heapify(queue)
  order = []
  while queue:
    arrival, place, waiting = heapq.heappop(queue)
    order.append(waiting[0])
    if len(waiting) > 1:
      later = arrival + random.exponential(1.0)
      heapq.heappush(queue, (later, place, waiting[1:]))
  ordered = reordered(trace, order)
  return dataclasses.replace(ordered, interleave_seed=seed)
