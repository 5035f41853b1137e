"""What the last requests could have saved at most: a bound over a window.

Of each request the hashes of its blocks are kept for a while, nothing else of
its tokens; the bound is computed when somebody asks for it, from a copy.
"""

import collections
import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.placement.bounds import Passage, upper_bound_of_bytes

WINDOW = 1000
"""Requests of a window, unless they have too many blocks."""

_MOST_BLOCKS = 1 << 20


class _Visit(NamedTuple):
  """A prompt that was computed, or a decoded sequence that ended.

  Attributes:
    salt: Hash of the tenant.
    keys: Hashes of its whole blocks, the bytes of int64.
    known: How many of them were known.
    length: Tokens of the prompt; 0 for one that ended.
    resumed: Tokens that it resumed after.
  """

  salt: int
  keys: bytes
  known: int
  length: int
  resumed: int


@dataclass(frozen=True)
class Recent:
  """The last requests of a store, as they were when somebody asked.

  Attributes:
    visits: Prompts, and ends of decoded sequences, in order.
    budget: What may be held.
    chunk: Tokens of a block.
  """

  visits: tuple[_Visit, ...] = field(repr=False)
  budget: Budget
  chunk: int

  @property
  def requests(self) -> int:
    """How many requests these are."""
    return sum(visit.length > 0 for visit in self.visits)

  @property
  def saved_tokens(self) -> int:
    """Tokens that they did not compute."""
    return sum(visit.resumed for visit in self.visits)

  @functools.cached_property
  def upper_bound_tokens(self) -> int:
    """What no policy saves more than of them, though it knew all to come.

    Of what was known before the first of them anything may be held then.
    """
    paths = self._paths()
    # Before them comes whoever left what they know and none of them left.
    seen: set[int] = set()
    earlier, own = [], []
    for visit, path in zip(self.visits, paths):
      known = path[: visit.known]
      if known and known[-1] not in seen:
        earlier.append(Passage(known, 0, 0))
      seen.update(path)
      limit = max(visit.length - 1, 0) // self.chunk
      own.append(Passage(path, limit, -(-visit.length // self.chunk)))
    budget = self.budget
    bound = upper_bound_of_bytes(
      [*earlier, *own],
      capacity=budget.capacity_bytes,
      # A model without recurrent layers has states of no bytes.
      state_bytes=max(budget.slot_bytes, 1),
      page_bytes=budget.page_bytes,
      warmup=len(earlier),
    )
    return bound.blocks * self.chunk

  def _paths(self) -> list[tuple[int, ...]]:
    """Every visit as numbers of prefixes."""
    numbers: dict[tuple[int, int], int] = {}
    paths = []
    for visit in self.visits:
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
    self._chunk, self._blocks = chunk, 0
    self._visits = collections.deque[_Visit]()

  def prompt(self, running: Running) -> None:
    """Notes a sequence whose prompt is computed."""
    blocks = running.prompt_length // self._chunk
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
    while len(self._visits) > WINDOW or self._blocks > _MOST_BLOCKS:
      self._blocks -= len(self._visits.popleft().keys) // 8

  def copy(self, budget: Budget) -> Recent:
    """The last requests as they are now.

    Args:
      budget: What may be held.
    """
    return Recent(tuple(self._visits), budget, self._chunk)
