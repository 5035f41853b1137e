"""Streams on which simple rules of eviction fail, each for a reason of its own.

    hot_prefix       one document among prompts that nobody repeats: a rule that
                     keeps what came last drops it, again and again
    cyclic_scan      20 documents in turn: with 16 slots, what came last is what
                     comes latest, and least-recently-used saves nothing
    regime_change    conversations, then documents, then conversations again:
                     what was learned of the one is wrong for the other
    two_tenants      two tenants in strict turn whose requests are alike: who
                     breaks ties by age or number starves one of them

All blocks are of 512 tokens, and prompts end 7 tokens behind a whole block. The
same seed gives the same streams.
"""

import itertools
import random
from collections.abc import Iterable, Iterator

import numpy as np

from sparse_prefix_jax.workloads.request import (
  Trace,
  TraceRequest,
  check_number,
)

_BLOCK = 512
_TAIL = 7
_LONGEST = 60


class _Blocks:
  """Blocks that nobody has had before."""

  def __init__(self) -> None:
    """Begins with number 0."""
    self._numbers = itertools.count()

  def new(self, count: int) -> list[int]:
    """The ids of so many new blocks."""
    return list(itertools.islice(self._numbers, count))


def adversarial_streams(seed: int = 1) -> dict[str, Trace]:
  """Makes all four streams.

  Args:
    seed: Chooses what is drawn, for the four of them together.

  Returns:
    By name: `hot_prefix` (2,000 requests), `cyclic_scan` (1,500),
    `regime_change` (2,100) and `two_tenants` (1,500, the tenant being the group
    of a request).

  Raises:
    ValueError: If the seed is no integer from 0.

  >>> {name: len(trace) for name, trace in adversarial_streams().items()}
  {'hot_prefix': 2000, 'cyclic_scan': 1500, 'regime_change': 2100,
   'two_tenants': 1500}
  """
  draws, blocks = _draws(seed), _Blocks()
  regimes = (
    _conversations(draws, blocks, 700),
    _documents(draws, blocks, 700),
    _conversations(draws, blocks, 700),
  )
  # Made in this order, since all of them draw from one generator.
  return {
    "hot_prefix": _trace("hot_prefix", _hot(draws, blocks, 2000)),
    "cyclic_scan": _trace("cyclic_scan", _scan(blocks, 1500)),
    "regime_change": _trace("regime_change", itertools.chain(*regimes)),
    "two_tenants": _trace("two_tenants", _tenants(draws, blocks, 1500), 2),
  }


def changed_regime(
  *, before: int, after: int, documents_first: bool, seed: int = 1
) -> Trace:
  """Makes a stream that changes its kind once and for all.

  Args:
    before: Requests of the first kind.
    after: Requests of the other kind.
    documents_first: Documents with questions and then conversations, or the
      other way round.
    seed: Chooses what is drawn.

  Returns:
    The stream; the requests of the first kind are of group 0, the others of 1.

  Raises:
    ValueError: If a number is no integer, or below 0.

  >>> stream = changed_regime(before=9, after=5, documents_first=True)
  >>> [request.group for request in stream.requests].count(1)
  5
  """
  check_number("before", before, 0)
  check_number("after", after, 1)
  draws, blocks = _draws(seed), _Blocks()
  kinds = (_documents, _conversations)
  first, second = kinds if documents_first else kinds[::-1]
  prompts = [*first(draws, blocks, before), *second(draws, blocks, after)]
  groups = [0] * before + [1] * after
  return Trace("changed_regime", _requests(prompts, groups), _BLOCK)


def _draws(seed: int) -> random.Random:
  """The generator of a seed."""
  check_number("seed", seed, 0, 2**64)
  return random.Random(seed)


def _trace(name: str, prompts: Iterable[list[int]], groups: int = 1) -> Trace:
  """A stream of prompts, whose groups take turns."""
  known = list(prompts)
  turns = [index % groups for index in range(len(known))]
  return Trace(name, _requests(known, turns), _BLOCK)


def _requests(
  prompts: list[list[int]], groups: list[int]
) -> tuple[TraceRequest, ...]:
  """Requests of one second each."""
  return tuple(
    TraceRequest(
      np.array(prompt, np.int32),
      _BLOCK * len(prompt) + _TAIL,
      group,
      index,
      float(index),
    )
    for index, (prompt, group) in enumerate(zip(prompts, groups))
  )


def _hot(
  draws: random.Random, blocks: _Blocks, requests: int
) -> Iterator[list[int]]:
  """One prompt in twenty asks about the same document of 40 blocks."""
  hot = blocks.new(40)
  for _ in range(requests):
    asked = draws.random() < 0.05
    yield hot + blocks.new(2) if asked else blocks.new(40)


def _scan(blocks: _Blocks, requests: int) -> Iterator[list[int]]:
  """20 documents of 32 blocks, one after the other, round and round."""
  documents = [blocks.new(32) for _ in range(20)]
  for index in range(requests):
    yield documents[index % 20] + blocks.new(1)


def _conversations(
  draws: random.Random, blocks: _Blocks, requests: int, count: int = 4
) -> Iterator[list[int]]:
  """Conversations in random turn, each of which begins anew at 60 blocks."""
  talks = [blocks.new(8) for _ in range(count)]
  for _ in range(requests):
    yield _next_turn(draws, blocks, talks)


def _tenants(
  draws: random.Random, blocks: _Blocks, requests: int
) -> Iterator[list[int]]:
  """Two tenants in turn, each with three conversations of its own."""
  tenants = [[blocks.new(8) for _ in range(3)] for _ in range(2)]
  for index in range(requests):
    yield _next_turn(draws, blocks, tenants[index % 2])


def _next_turn(
  draws: random.Random, blocks: _Blocks, talks: list[list[int]]
) -> list[int]:
  """One of the conversations goes on by three blocks."""
  chosen = draws.randrange(len(talks))
  if len(talks[chosen]) > _LONGEST:
    talks[chosen] = blocks.new(8)
  talks[chosen] = talks[chosen] + blocks.new(3)
  return talks[chosen]


def _documents(
  draws: random.Random, blocks: _Blocks, requests: int
) -> Iterator[list[int]]:
  """12 documents of 20 to 49 blocks, few of them often asked about."""
  documents = [blocks.new(draws.randrange(20, 50)) for _ in range(12)]
  for _ in range(requests):
    chosen = min(int(draws.expovariate(0.4)), 11)
    yield documents[chosen] + blocks.new(draws.randrange(1, 13))
