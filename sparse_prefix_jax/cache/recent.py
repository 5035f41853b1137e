"""What the last requests could have saved at most: a bound over a window.

Of each request the hashes of its blocks are kept for a while, nothing else of
its tokens; the bound is computed when somebody asks for it, from a copy.
"""

import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.placement.bounds import Passage, upper_bound_of_bytes

WINDOW = 1000
"""Requests of a window, unless they have too many blocks."""

_MOST_BLOCKS = 1 << 20
# Pieces of intervals that are looked at for a bound: about a second.
_WORK = 100_000_000


class _Visit(NamedTuple):
  """A prompt that was computed, once or again, or a decoded sequence's end.

  Attributes:
    salt: Hash of the tenant.
    keys: Hashes of its whole blocks, the bytes of int64.
    known: How many of them were known.
    length: Tokens of the prompt; 0 for one computed again, and for an end.
    resumed: Tokens that it resumed after.
  """

  salt: int
  keys: bytes
  known: int
  length: int
  resumed: int


class Recent(dict[str, int]):
  """The last requests of a store, as they were when somebody asked.

  As a dictionary, which can be written as JSON, it has their number,
  `requests`, and the tokens that they did not compute, `saved_tokens`.

  Args:
    visits: Prompts, once or again, and ends of decoded sequences, in order.
    budget: What may be held.
    chunk: Tokens of a block.

  >>> recent = Recent((), Budget(1000, 100, 10), chunk=64)
  >>> recent, recent.upper_bound_tokens
  ({'requests': 0, 'saved_tokens': 0}, 0)
  """

  def __init__(
    self, visits: Sequence[_Visit], budget: Budget, chunk: int
  ) -> None:
    """Keeps what a bound needs beside the two figures."""
    super().__init__(
      requests=sum(visit.length > 0 for visit in visits),
      saved_tokens=sum(visit.resumed for visit in visits),
    )
    self._visits, self._budget, self._chunk = visits, budget, chunk

  @property
  def requests(self) -> int:
    """How many requests these are."""
    return self["requests"]

  @property
  def saved_tokens(self) -> int:
    """Tokens that they did not compute."""
    return self["saved_tokens"]

  @functools.cached_property
  def upper_bound_tokens(self) -> int:
    """What no policy saves more than of them, though it knew all to come.

    Of what was known before the first of them anything may be held then. A
    prompt that was computed in parts counts when its last one is, as if it had
    been alone; what was saved is never more than the bound even so.
    """
    paths = self._paths()
    # Before them comes whoever left what they know and none of them left.
    seen: set[int] = set()
    earlier, own = [], []
    for visit, path in zip(self._visits, paths):
      known = path[: visit.known]
      if known and known[-1] not in seen:
        earlier.append(Passage(known, 0, 0))
      seen.update(path)
      limit = max(visit.length - 1, 0) // self._chunk
      own.append(Passage(path, limit, -(-visit.length // self._chunk)))
    budget = self._budget
    bound = upper_bound_of_bytes(
      [*earlier, *own],
      capacity=budget.capacity_bytes,
      state_bytes=budget.slot_bytes,
      page_bytes=budget.page_bytes,
      warmup=len(earlier),
      work=_WORK,
    )
    return max(bound.blocks * self._chunk, self.saved_tokens)

  def _paths(self) -> list[tuple[int, ...]]:
    """Every visit as numbers of prefixes."""
    numbers: dict[tuple[int, int], int] = {}
    paths = []
    for visit in self._visits:
      # No prefix has a negative number: tenants begin apart.
      node, path = -1 - (visit.salt & 0x7FFFFFFFFFFFFFFF), []
      for key in np.frombuffer(visit.keys, np.int64).tolist():
        node = numbers.setdefault((node, key), len(numbers))
        path.append(node)
      paths.append(tuple(path))
    return paths


class Window:
  """Remembers the last requests of a store.

  Args:
    chunk: Tokens of a block.
  """

  def __init__(self, chunk: int) -> None:
    """Remembers nothing yet."""
    self._chunk = chunk
    self.clear()

  def clear(self) -> None:
    """Forgets all of them: nothing that is stored goes back to them."""
    self._visits = collections.deque[_Visit]()
    self._blocks = self._requests = 0

  def prompt(self, running: Running) -> None:
    """Notes a sequence whose prompt is computed.

    One that was dropped and is computed again is no request any more; but what
    it leaves can be kept from here on.
    """
    blocks = running.prompt_length // self._chunk
    if running.request.observed:
      self._note(running, blocks, 0, 0, 0)
      return
    known = min(running.match.overlap_blocks, blocks)
    self._note(running, blocks, known, running.prompt_length, running.resumed)

  def ended(self, running: Running) -> None:
    """Notes a sequence that decoded beyond its prompt, and ends."""
    blocks = running.length // self._chunk
    if blocks > running.prompt_length // self._chunk:
      self._note(running, blocks, 0, 0, 0)

  def _note(
    self, running: Running, blocks: int, known: int, length: int, resumed: int
  ) -> None:
    """Remembers a visit, and forgets the oldest ones."""
    hashes = [*map(hash, running.blocks[:blocks])]
    keys = np.array(hashes, np.int64).tobytes()
    salt = hash(running.request.salt)
    self._visits.append(_Visit(salt, keys, known, length, resumed))
    self._blocks += blocks
    self._requests += length > 0
    while self._requests > WINDOW or self._blocks > _MOST_BLOCKS:
      gone = self._visits.popleft()
      self._blocks -= len(gone.keys) // 8
      self._requests -= gone.length > 0

  def copy(self, budget: Budget) -> Recent:
    """The last requests as they are now.

    Args:
      budget: What may be held.
    """
    return Recent(tuple(self._visits), budget, self._chunk)
