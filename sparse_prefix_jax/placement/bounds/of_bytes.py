"""What no policy can save with so many bytes, whatever it knows of the future.

As with K states (`of_states`), who resumes uses a state that was held
since the last visit of its prefix; with it were held the pages of all blocks of
the prefix. A page serves all states below it, so its price is shared: at every
step the shares of a page over the requests that could use it then sum to 1,

    price of an interval = sum over its steps t of  p_t * (S + P * sum over its
        blocks x of  1 / how many requests could use x at t)

with S and P the bytes of a state and of a page. Whatever is chosen, these are
no more bytes than it takes, so the bound stays one. While a request runs it
takes two states and the pages of its own prompt, which leaves

    room at t = C - 2 S - P * pages of the request that comes after t

for the rest, and what lies on its way costs nothing then. Blocks that the same
requests visit are one *stretch* of the tree, and everything is counted by
stretches: visits of a stretch are where the shares of its pages change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.bounds.dual import (
  ITERATIONS,
  Bound,
  Choices,
  Relaxed,
  lowest,
)

_FEWEST = 20


class Passage(NamedTuple):
  """What a bound has to know of a request that was served.

  Attributes:
    nodes: One number per whole block, of the answer too; equal numbers are
      equal prefixes.
    limit: Blocks after which it may resume at most.
    pages: Pages that it takes while it runs.
  """

  nodes: tuple[int, ...]
  limit: int
  pages: int


@dataclass(frozen=True)
class Uses:
  """Which states requests could use, and the pages that go with them.

  A *visit* is one of a request to a stretch; the visits of a stretch stand
  together, in order. A *piece* is one stretch of an interval: the visits from
  `first` to before `last`.

  Attributes:
    request: int64 [n], who could resume, ascending.
    since: int64 [n], the request that the state was held since.
    gain: float64 [n], blocks that it would spare.
    pieces: int64 [n], where the pieces of each interval begin.
    first: int64 [pieces], the visit that its pages were held since.
    last: int64 [pieces], that of the request itself.
    blocks: float64 [pieces], how many pages those are.
    time: int64 [visits], which request each was.
    end: int64 [visits], the step at which the next visit of the stretch takes
      its pages for itself.
    sharing: float64 [visits], how many requests could use the pages from this
      visit to the next.
    room: int64 [requests], pages of the request that comes after each step.
  """

  request: Int64[np.ndarray, "n"]
  since: Int64[np.ndarray, "n"]
  gain: Float64[np.ndarray, "n"]
  pieces: Int64[np.ndarray, "n"]
  first: Int64[np.ndarray, "pieces"]
  last: Int64[np.ndarray, "pieces"]
  blocks: Float64[np.ndarray, "pieces"]
  time: Int64[np.ndarray, "visits"]
  end: Int64[np.ndarray, "visits"]
  sharing: Float64[np.ndarray, "visits"]
  room: Int64[np.ndarray, "requests"]


@dataclass(frozen=True)
class _Ways:
  """The ways of all requests in stretches, one after another.

  Attributes:
    starts: int64 [requests + 1], where the way of each request begins.
    blocks: int64 [n], blocks of each stretch.
    ends: int64 [n], depth of its last block.
    visits: int64 [n], number of the visit, by stretch and then by time.
    before: int64 [n], who visited the stretch last before; -1 for nobody.
    time: int64 [visits], which request each visit was.
    after: int64 [visits], who visits the stretch next; itself for nobody.
  """

  starts: Int64[np.ndarray, "requests_and_1"]
  blocks: Int64[np.ndarray, "n"]
  ends: Int64[np.ndarray, "n"]
  visits: Int64[np.ndarray, "n"]
  before: Int64[np.ndarray, "n"]
  time: Int64[np.ndarray, "visits"]
  after: Int64[np.ndarray, "visits"]


def _ways(prompts: Sequence[Passage]) -> _Ways:
  """Cuts the ways of requests where others left them."""
  paths = [np.array(prompt.nodes, np.int64) for prompt in prompts]
  passed = np.bincount(np.concatenate(paths)) if paths else np.zeros(0)
  # Who passes a block passed those above it: fewer do, the deeper it lies.
  ends = [np.flatnonzero(np.diff(passed[path], append=0)) for path in paths]
  sizes = [end.size for end in ends]
  request = np.repeat(np.arange(len(paths)), sizes)
  nodes = np.concatenate([path[end] for path, end in zip(paths, ends)])
  blocks = np.concatenate([np.diff(end, prepend=-1) for end in ends])
  order = np.lexsort((request, nodes))
  time, same = request[order], np.diff(nodes[order]) == 0
  visits = np.empty(order.size, np.int64)
  visits[order] = np.arange(order.size)
  before = np.full(order.size, -1)
  before[1:][same] = time[:-1][same]
  after = time.copy()
  after[:-1][same] = time[1:][same]
  return _Ways(
    np.concatenate([[0], np.cumsum(sizes)]),
    blocks,
    np.concatenate(ends) + 1,
    visits,
    before[visits],
    time,
    after,
  )


def uses_of(prompts: Sequence[Passage], *, warmup: int = 0) -> Uses:
  """Finds what the requests of a stream could use.

  Args:
    prompts: Those that were served, in order; at least one.
    warmup: How many leading ones are not measured.

  >>> twice = [Passage((0, 1), 1, 2), Passage((0, 1), 1, 2)]
  >>> uses_of(twice).gain.tolist()
  [1.0]
  """
  ways = _ways(prompts)
  rows: list[tuple[int, int, int]] = []
  pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
  deepest: list[int] = []
  for request in range(warmup, len(prompts)):
    found = _intervals(ways, request, prompts[request].limit)
    for since, depth, *piece in found:
      rows.append((request, since, depth))
      pieces.append((piece[0], piece[1], piece[2]))
    deepest += [len(rows) - 1] * bool(found)
  request, since, gain = np.array(rows, np.int64).reshape(-1, 3).T
  joined = [np.concatenate([np.zeros(0, np.int64), *p]) for p in zip(*pieces)]
  first, last, blocks = joined or [np.zeros(0, np.int64)] * 3
  sizes = [piece[0].size for piece in pieces]
  pages = [prompt.pages for prompt in prompts]
  return Uses(
    request=request,
    since=since,
    gain=gain.astype(np.float64),
    pieces=np.cumsum([0, *sizes], dtype=np.int64)[:-1],
    first=first,
    last=last,
    blocks=blocks.astype(np.float64),
    time=ways.time,
    end=np.maximum(ways.after - 1, ways.time),
    sharing=_sharing(ways.time.size, [pieces[one] for one in deepest]),
    room=np.array([*pages[1:], 0], np.int64),
  )


def _intervals(ways: _Ways, request: int, limit: int) -> list[tuple]:
  """The intervals of one request: since, depth, and its pieces."""
  own = slice(ways.starts[request], ways.starts[request + 1])
  blocks, before = ways.blocks[own], ways.before[own]
  usable = (before >= 0) & (ways.ends[own] - blocks < limit)
  count = int(usable.sum())
  found = []
  for last in np.flatnonzero(np.diff(before[:count], append=-1)).tolist():
    since, depth = int(before[last]), min(int(ways.ends[own][last]), limit)
    held = blocks[: last + 1].copy()
    held[-1] -= ways.ends[own][last] - depth
    start = ways.starts[since]
    visits = ways.visits[start : start + last + 1]
    found.append((since, depth, visits, ways.visits[own][: last + 1], held))
  return found


def _sharing(
  visits: int, deepest: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> Float64[np.ndarray, "visits"]:
  """How many requests could use the pages of a stretch after each visit.

  Who could use a page at all could use it since his deepest interval began.
  """
  change = np.zeros(visits + 1)
  for first, last, _ in deepest:
    change[first] += 1
    change[last] -= 1
  return np.maximum(np.cumsum(change)[:-1], 1)


class _Dual:
  """The relaxed problem of so many bytes, in units of a state, or of a page.

  Attributes:
    state: Size of a state.
    page: Size of a page.
    room: What there is at every step.
  """

  def __init__(
    self, uses: Uses, capacity: int, state_bytes: int, page_bytes: int
  ) -> None:
    """Knows who may choose what, and what room there is.

    Raises:
      ValueError: If a size is negative.
    """
    if min(capacity, state_bytes, page_bytes) < 0:
      raise ValueError(
        "capacity, state_bytes and page_bytes must not be negative, got"
        f" {capacity}, {state_bytes} and {page_bytes}"
      )
    # A model without recurrent layers has states of no bytes.
    unit = state_bytes or page_bytes or 1
    self._uses, self._choices = uses, Choices(uses.request)
    self.state, self.page = state_bytes / unit, page_bytes / unit
    room = np.full(uses.room.size, capacity / unit)
    room[:-1] -= 2 * self.state + self.page * uses.room[:-1]
    # Whoever runs although he does not fit leaves nothing, and owes nothing.
    self.room = np.maximum(room, 0.0)
    self._piece_of = np.repeat(
      np.arange(uses.request.size),
      np.diff(uses.pieces, append=uses.first.size),
    )

  def relax(self, prices: Float64[np.ndarray, "steps"]) -> Relaxed:
    """Lets every request choose by itself."""
    gained, chosen = self._choices.best(self.profit(prices))
    slope = self.room - self._taken(chosen)
    value = gained + float((self.room * prices).sum())
    return Relaxed(value, prices, slope)

  def profit(
    self, prices: Float64[np.ndarray, "steps"]
  ) -> Float64[np.ndarray, "n"]:
    """What each interval spares beyond its price."""
    uses = self._uses
    sums = np.concatenate([[0.0], np.cumsum(prices)])
    state = sums[uses.request] - sums[uses.since]
    of_visit = (sums[uses.end] - sums[uses.time]) / uses.sharing
    so_far = np.concatenate([[0.0], np.cumsum(of_visit)])
    of_piece = uses.blocks * (so_far[uses.last] - so_far[uses.first])
    pages = np.add.reduceat(of_piece, uses.pieces)
    return uses.gain - self.state * state - self.page * pages

  def _taken(
    self, chosen: Int64[np.ndarray, "chosen"]
  ) -> Float64[np.ndarray, "steps"]:
    """What chosen intervals take at every step."""
    uses, steps, visits = self._uses, self.room.size, self._uses.time.size
    starts = np.bincount(uses.since[chosen], minlength=steps)
    ends = np.bincount(uses.request[chosen], minlength=steps)
    mine = np.isin(self._piece_of, chosen)
    blocks = uses.blocks[mine]
    held = np.bincount(uses.first[mine], blocks, visits + 1)
    held -= np.bincount(uses.last[mine], blocks, visits + 1)
    share = np.cumsum(held)[:-1] / uses.sharing
    pages = np.bincount(uses.time, share, steps)
    pages -= np.bincount(uses.end, share, steps)
    states = np.cumsum(starts - ends)
    return self.state * states + self.page * np.cumsum(pages)


def upper_bound_of_bytes(
  prompts: Sequence[Passage],
  *,
  capacity: int,
  state_bytes: int,
  page_bytes: int,
  warmup: int = 0,
  work: int | None = None,
) -> Bound:
  """Returns an upper bound on what so many bytes can save.

  Args:
    prompts: What was served, in order; who was refused is left out.
    capacity: Bytes of states and pages, of who runs too.
    state_bytes: Of a state; 0 for a model without recurrent layers.
    page_bytes: Of a page; 0 for one without attention.
    warmup: How many leading ones are not measured. When they have passed,
      whatever could have been captured may be held.
    work: How many pieces of intervals may be looked at, at most, while the
      bound is lowered; None for as many as it takes.

  Raises:
    ValueError: If a size is negative.

  >>> twice = [Passage((0, 1, 2), 2, 3)] * 2
  >>> sizes = {"state_bytes": 10, "page_bytes": 1}
  >>> upper_bound_of_bytes(twice, capacity=50, **sizes).blocks
  2
  """
  if not prompts:
    return Bound(0, np.zeros(0))
  uses = uses_of(prompts, warmup=warmup)
  steps = (np.arange(len(prompts)) >= warmup - 1).astype(float)
  if not uses.request.size:
    return Bound(0, np.zeros(len(prompts)))
  dual = _Dual(uses, capacity, state_bytes, page_bytes)
  iterations = ITERATIONS
  if work is not None:
    iterations = min(ITERATIONS, max(_FEWEST, work // uses.first.size))
  return lowest(dual, steps, iterations)


def hindsight_of_bytes(
  prompts: Sequence[Passage],
  bound: Bound,
  *,
  capacity: int,
  state_bytes: int,
  page_bytes: int,
) -> int:
  """Returns the blocks that one plan saves, knowing the future.

  The requests choose in the order of how much their best interval exceeds its
  prices; whoever finds no room takes his next best. It is a plan, not the best
  one: the best one saves at least as much, and at most the bound.

  Args:
    prompts: As of `upper_bound_of_bytes`, all of them measured.
    bound: What that gave for them.
    capacity: Bytes.
    state_bytes: Of a state.
    page_bytes: Of a page.
  """
  if not bound.blocks:
    return 0
  uses = uses_of(prompts)
  dual = _Dual(uses, capacity, state_bytes, page_bytes)
  profit = dual.profit(bound.prices)
  left, held = dual.room.copy(), np.zeros(uses.time.size)
  served, saved = np.zeros(len(prompts), np.bool_), 0
  ends = np.append(uses.pieces[1:], uses.first.size)
  for one in np.lexsort((uses.gain, profit))[::-1].tolist():
    if served[uses.request[one]]:
      continue
    own = slice(uses.pieces[one], ends[one])
    visits, blocks = _held_visits(uses, own)
    more = np.maximum(blocks - held[visits], 0) * dual.page
    need = np.zeros(left.size + 1)
    np.add.at(need, uses.time[visits], more)
    np.add.at(need, uses.end[visits], -more)
    need = np.cumsum(need)[:-1]
    need[uses.since[one] : uses.request[one]] += dual.state
    if (need > left + 1e-9).any():
      continue
    left -= need
    held[visits] = np.maximum(held[visits], blocks)
    served[uses.request[one]] = True
    saved += int(uses.gain[one])
  return saved


def _held_visits(uses: Uses, own: slice) -> tuple[np.ndarray, np.ndarray]:
  """After which visits an interval holds pages, and how many of a stretch."""
  sizes = uses.last[own] - uses.first[own]
  ranges = [
    np.arange(first, last)
    for first, last in zip(uses.first[own].tolist(), uses.last[own].tolist())
  ]
  return np.concatenate(ranges), np.repeat(uses.blocks[own], sizes)
