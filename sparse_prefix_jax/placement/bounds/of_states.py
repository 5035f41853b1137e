"""What no policy can save with K states, whatever it knows of the future.

A request that resumes from a prefix uses a state that somebody captured when he
went through that prefix, and that was held since its last visit: for the whole
*interval* of steps from that visit to now. One interval per distinct last visit
on its path is enough, the deepest. Intervals of one prefix never overlap, so at
every step as many states are held as chosen intervals cover it. Hence what is
saved is at most the optimum of

    choose at most one interval per request, the sum of gains being largest,
    such that no step is covered by more than K.

With a price for covering each step the second condition can be given up: every
request takes the interval whose gain exceeds its prices most, or none. For any
prices that are not negative

    sum over requests of max(0, max of gain - prices of its steps) + K * prices

is an upper bound (weak duality), and the prices are improved by the subgradient
method. So the figure is certified: no more than its arithmetic has to be right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.bounds.dual import (
  Bound,
  Choices,
  Relaxed,
  lowest,
)
from sparse_prefix_jax.placement.inputs import check_budget


@dataclass(frozen=True)
class Intervals:
  """Which states the requests of a stream could use, sorted by request.

  Attributes:
    request: int64 [n], who could resume.
    since: int64 [n], the request that the state must have been held since, or
      the last of the warm-up, if that is later.
    gain: float64 [n], blocks that it would spare.
    requests: How many requests there are.
  """

  request: Int64[np.ndarray, "n"]
  since: Int64[np.ndarray, "n"]
  gain: Float64[np.ndarray, "n"]
  requests: int


@runtime_checkable
class SeenPath(Protocol):
  """The way of one request through the tree of all.

  Attributes:
    nodes: One number per whole block; equal numbers are equal prefixes.
    seen: Depth of the deepest node that an earlier request passed.
  """

  @property
  def nodes(self) -> tuple[int, ...]:
    """Numbers of nodes."""
    ...

  @property
  def seen(self) -> int:
    """A depth in blocks."""
    ...


def intervals_of(paths: Sequence[SeenPath], *, warmup: int = 0) -> Intervals:
  """Finds the intervals of a stream.

  Args:
    paths: What `tree_paths` gave for it.
    warmup: How many leading requests are not measured. When they have passed,
      any K states that could have been captured may be held.

  >>> from sparse_prefix_jax.evaluation.anchor_rules import Path
  >>> paths = [Path((0, 1), 0, -1), Path((0, 1), 2, 0), Path((0,), 1, 1)]
  >>> intervals_of(paths).gain.tolist()
  [2.0, 1.0]
  """
  nodes = 1 + max((path.nodes[-1] for path in paths if path.nodes), default=0)
  visited = np.zeros(nodes, np.int64)
  request, since, gain = [], [], []
  for position, path in enumerate(paths):
    way = np.array(path.nodes, np.int64)
    if path.seen and position >= warmup:
      # Whoever reached a node passed those above it: visits never rise.
      visits = visited[way[: path.seen]]
      deepest = np.flatnonzero(np.diff(visits, append=-1))
      request.append(np.full(deepest.size, position))
      since.append(np.maximum(visits[deepest], warmup - 1))
      gain.append(deepest + 1.0)
    visited[way] = position
  none = [np.zeros(0, np.int64)]
  return Intervals(
    np.concatenate(request or none),
    np.concatenate(since or none),
    np.concatenate(gain or [np.zeros(0)]),
    len(paths),
  )


def upper_bound(intervals: Intervals, slots: int) -> Bound:
  """Returns an upper bound on what K states can save.

  Args:
    intervals: What `intervals_of` gave.
    slots: K.

  Raises:
    ValueError: If K is negative or no integer.

  >>> from sparse_prefix_jax.evaluation.anchor_rules import Path
  >>> paths = [Path((0,), 0, -1), Path((1,), 0, -1)]
  >>> paths += [Path((0,), 1, 0), Path((1,), 1, 1)]
  >>> upper_bound(intervals_of(paths), slots=1).blocks
  1
  """
  slots = check_budget(slots, "slots")
  if not intervals.request.size:
    return Bound(0, np.zeros(intervals.requests))
  dual = _Dual(intervals, slots)
  return lowest(dual, np.ones(intervals.requests))


def hindsight(intervals: Intervals, bound: Bound, slots: int) -> int:
  """Returns the blocks that one plan with K states saves, knowing the future.

  The requests choose in the order of how much their best interval exceeds its
  prices; whoever finds a step full takes his next best. It is a plan, not the
  best one: the best one saves at least as much, and at most the bound.

  It may begin to keep a prefix above the state that a prompt resumes from, as
  the bound allows; a server computes nothing there, and cannot.

  Args:
    intervals: What `intervals_of` gave.
    bound: What `upper_bound` gave for them.
    slots: K.

  >>> from sparse_prefix_jax.evaluation.anchor_rules import Path
  >>> paths = [Path((0,), 0, -1), Path((1,), 0, -1)]
  >>> paths += [Path((0,), 1, 0), Path((1,), 1, 1)]
  >>> intervals = intervals_of(paths)
  >>> hindsight(intervals, upper_bound(intervals, 1), slots=1)
  1
  """
  profit = intervals.gain - _price(intervals, bound.prices)
  left = np.full(intervals.requests, slots)
  served, saved = np.zeros(intervals.requests, np.bool_), 0
  for one in np.lexsort((intervals.gain, profit))[::-1]:
    request, since = intervals.request[one], intervals.since[one]
    if served[request] or not (left[since:request] > 0).all():
      continue
    left[since:request] -= 1
    served[request] = True
    saved += int(intervals.gain[one])
  return saved


def _price(
  intervals: Intervals, prices: Float64[np.ndarray, "steps"]
) -> Float64[np.ndarray, "n"]:
  """The sum of prices that each interval covers."""
  sums = np.concatenate([[0.0], np.cumsum(prices)])
  return sums[intervals.request] - sums[intervals.since]


class _Dual:
  """The relaxed problem of K states."""

  def __init__(self, intervals: Intervals, slots: int) -> None:
    """Knows who may choose what."""
    self._intervals, self._slots = intervals, slots
    self._choices = Choices(intervals.request)

  def relax(self, prices: Float64[np.ndarray, "steps"]) -> Relaxed:
    """Lets every request choose by itself."""
    intervals, size = self._intervals, self._intervals.requests
    gained, chosen = self._choices.best(
      intervals.gain - _price(intervals, prices)
    )
    starts = np.bincount(intervals.since[chosen], minlength=size)
    ends = np.bincount(intervals.request[chosen], minlength=size)
    slope = (self._slots - np.cumsum(starts - ends)).astype(float)
    return Relaxed(gained + self._slots * float(prices.sum()), prices, slope)
