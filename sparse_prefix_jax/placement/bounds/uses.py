"""Which states requests could use, and which pages go with them.

Blocks that the same requests visit are one *stretch* of the tree, and
everything is counted by stretches: visits of a stretch are where the shares of
its pages change. Stretches one behind another that the same requests could use
at the same time are counted as one (`merged`), so what a bound takes grows with
the branches of a tree and not with the turns of its conversations.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64


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


def piece_owners(uses: Uses) -> Int64[np.ndarray, "pieces"]:
  """Returns which interval each piece belongs to.

  Args:
    uses: Of a stream.
  """
  sizes = np.diff(uses.pieces, append=uses.first.size)
  return np.repeat(np.arange(uses.request.size), sizes)


def merged(uses: Uses) -> Uses:
  """Counts as one what is held by the same requests at the same time.

  Who visits a stretch visits those above it. So pieces of an interval, one
  behind another, with as many visits have the same ones, and if their shares
  have the same sum, the same shares.

  Args:
    uses: What `uses_of` gave.

  Returns:
    What every interval takes is the same. Of the visits only those are left
    that a piece goes over.

  >>> one, two = Passage((0, 1), 2, 3), Passage((0, 1, 2), 3, 4)
  >>> uses = uses_of([one, two, two])
  >>> uses.first.size, merged(uses).first.size, merged(uses).blocks.tolist()
  (3, 2, [2.0, 3.0])
  """
  owner, counts = piece_owners(uses), uses.last - uses.first
  sums = np.concatenate([[0.0], np.cumsum(uses.sharing)])
  shares = sums[uses.last] - sums[uses.first]
  new = np.ones(owner.size, np.bool_)
  new[1:] = (np.diff(owner) != 0) | (np.diff(counts) != 0)
  new[1:] |= np.diff(shares) != 0
  starts = np.flatnonzero(new)
  first, last = uses.first[starts], uses.last[starts]
  visits = uses.time.size
  over = np.bincount(first, minlength=visits + 1)
  over -= np.bincount(last, minlength=visits + 1)
  left = np.cumsum(over)[:-1] > 0
  number = np.concatenate([[0], np.cumsum(left)])
  return dataclasses.replace(
    uses,
    pieces=np.searchsorted(starts, uses.pieces),
    first=number[first],
    last=number[last],
    blocks=np.add.reduceat(uses.blocks, starts),
    time=uses.time[left],
    end=uses.end[left],
    sharing=uses.sharing[left],
  )
