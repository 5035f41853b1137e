"""Which tokens tell where an entry will be left: `Cues`, of each tenant.

`conditional` learns them with its other statistics (`mixture`), `adaptive` when
it has the time (`cue_learner`).

Prompts made from a template end what they share in the same tokens: the marker
before a question, the header of a turn. An entry that matched nothing cannot
say where it will be left, but its tokens can: other entries were left right
after the same pair of ids. Pairs are what works: one id alone is found all over
a text, and that a text was seen elsewhere says nothing of where it ends.

For each pair (a, b) after which an entry was left, two counts are kept: how
often that happened, and how often the pair occurs in the entries that were
left, there, elsewhere or at their ends. What an entry shared with others when
it came was known then, so only what lies beyond tells, and only who goes beyond
it shows: whoever is left where others were says nothing of a new prompt, and
the turns of a conversation say that nobody is left at their headers. The ratio

    departures / (occurrences + 2)

is high for a marker that ends what is shared wherever it stands. But a template
has few markers, and what is shared ends at one of several: behind the document,
not behind the question; after the first header, not after those of each turn.
So both are counted once more for each *rank* of an occurrence: how many of its
pair stand before it, and how many behind. The highest of its three ratios is
that of an occurrence, the pair with the highest is the one to follow, and of
its occurrences the last that comes near is the cue of a prompt: those that are
the first and the only one tell nothing of which is right where there are two.
Only what was left after in two contexts counts: one document may be left at one
place for ever, which tells nothing of others.
"""

import sys
import zlib
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

# Pairs that are remembered; those with the fewest departures go first.
_MOST = 1024

# Tenants whose cues are remembered; whoever taught longest ago goes first:
# asking where an entry will be left renews nothing.
_TENANTS = 64

# A pair with a lower ratio is found where nobody leaves, as a rule. Whoever
# matched something is left where it left that, unless a cue is surer.
_LEAST_RATIO, _SURE_RATIO = 0.2, 0.5

# Occurrences are counted within so many ids before and behind: a plan learns
# beside requests, which wait for the interpreter meanwhile.
_REACH = 4096

# Ranks that are told apart: none of the pair, one, two; more, or nobody knows.
_RANKS = 4
_WAYS = 1 + 2 * _RANKS

# Of the occurrences of a pair, who has so much of the best ratio is as good.
_NEAR = 0.8

# The last ids of a prompt, in which its cue is looked for: it waits for that.
_SEARCHED = 32_768

# What stands before a pair is compared as a hash of so many ids.
_CONTEXT = 16
_SEVERAL, _NONE = -1, -2

# A pair is looked up by 16 bits of a product first: a prompt has many pairs.
_BITS = 16
_FACTOR = np.int64(0x9E3779B1)


class Prompt(NamedTuple):
  """The tokens of a prompt, and whose it is.

  Attributes:
    ids: Token ids; empty where only hashes of blocks are known. [t]
    tenant: What is learned from one tenant's tokens is used for no other's.
  """

  ids: np.ndarray
  tenant: Hashable = None


class Departure(NamedTuple):
  """Where a prompt left an entry.

  Attributes:
    prompt: Its tokens.
    overlap: How many of its first ids the entry has.
    entry: Tokens of the entry.
    shared: How many of those it shared with others when it came.
  """

  prompt: Prompt
  overlap: int
  entry: int = sys.maxsize
  shared: int = 0


class Cues(NamedTuple):
  """Counts of pairs of ids; no method changes it.

  Attributes:
    pairs: int64 [K], the pairs in ascending order, as a * 2**32 + b.
    departures: float64 [K, 9], how often an entry was left right after each:
      anywhere, by the number of its pair before, and by the number behind.
    occurrences: float64 [K, 9], how often each was passed.
    contexts: int64 [K, 9], a hash of what stood before each when it was first
      left after; `_SEVERAL` since it was in another context, `_NONE` before.
    known: bool [2**16], which hashes pairs have that are cues.
  """

  pairs: Int64[np.ndarray, "K"]
  departures: Float64[np.ndarray, "K ways"]
  occurrences: Float64[np.ndarray, "K ways"]
  contexts: Int64[np.ndarray, "K ways"]
  known: Bool[np.ndarray, "hashes"]

  @classmethod
  def create(cls) -> "Cues":
    """Returns counts of nothing."""
    counts = np.zeros((0, _WAYS))
    none, contexts = np.zeros(0, np.int64), np.zeros((0, _WAYS), np.int64)
    return cls(none, counts, counts, contexts, np.zeros(1 << _BITS, bool))

  def observe(
    self, ids: np.ndarray, overlap: int, decay: float, *, shared: int = 0
  ) -> "Cues":
    """Lets the counts fade, then learns from where an entry was left.

    Args:
      ids: The entry, or a prompt that left it: they are taken to be made alike
        behind what they share. [t]
      overlap: After how many ids it was left; all of them for its end, after
        which nothing departs.
      decay: What is left of every earlier count, in (0, 1].
      shared: How many of its first ids it shared with others when it came.

    Returns:
      The new counts; those that there were, where nothing is told.

    >>> cues = Cues.create().observe(np.array([5, 7, 8, 7, 8]), 3, 1.0)
    >>> cues.departures[:, 0], cues.occurrences[:, 0]
    (array([1.]), array([2.]))
    >>> cues = cues.observe(np.array([6, 7, 8, 7, 8]), 5, 1.0, shared=3)
    >>> cues.departures[:, 0], cues.occurrences[:, 0]
    (array([1.]), array([3.]))
    """
    ended = overlap >= len(ids)
    if overlap < 2 or overlap <= shared or (ended and not self.pairs.size):
      return self
    first, last = max(overlap - _REACH, 0), min(overlap + _REACH, len(ids))
    passed, left = _pairs(ids[first:last]), overlap - first - 2
    counts = self._faded(decay)
    if not ended:
      counts = counts._with(passed[left])
    where, rows = counts._find(passed)
    ways = _ways(rows, front=not first, behind=last == len(ids))
    new = where + first + 2 > shared
    cells = np.bincount(
      (rows[new, None] * _WAYS + ways[new]).ravel(),
      minlength=counts.occurrences.size,
    )
    counts.occurrences[:] += cells.reshape(counts.occurrences.shape)
    if not ended:
      left = int(np.searchsorted(where, left))
      counts._leave(rows[left], ways[left], _context(ids[first : overlap - 2]))
    cues = counts.pairs[counts.ratios().any(axis=-1)]
    return counts._replace(known=_hashed(cues))

  def _find(
    self, pairs: Int64[np.ndarray, "pairs"]
  ) -> tuple[Int64[np.ndarray, "found"], Int64[np.ndarray, "found"]]:
    """Which of some pairs are counted, and in which rows."""
    rows = np.searchsorted(self.pairs, pairs)
    rows = np.minimum(rows, self.pairs.size - 1)
    found = np.flatnonzero(self.pairs[rows] == pairs)
    return found, rows[found]

  def _leave(
    self, row: np.int64, ways: Int64[np.ndarray, "3"], context: int
  ) -> None:
    """Counts a departure, in counts that may be changed."""
    self.departures[row, ways] += 1
    before = self.contexts[row, ways]
    same = (before == _NONE) | (before == context)
    self.contexts[row, ways] = np.where(same, context, _SEVERAL)

  def _faded(self, decay: float) -> "Cues":
    """The same counts, which may be changed, after some time."""
    return self._replace(
      departures=self.departures * decay,
      occurrences=self.occurrences * decay,
      contexts=self.contexts.copy(),
    )

  def _with(self, pair: np.int64) -> "Cues":
    """The same counts with room for a pair that may be new."""
    place = int(np.searchsorted(self.pairs, pair))
    if place < self.pairs.size and self.pairs[place] == pair:
      return self
    columns = [
      np.insert(self.pairs, place, pair),
      np.insert(self.departures, place, 0.0, axis=0),
      np.insert(self.occurrences, place, 0.0, axis=0),
      np.insert(self.contexts, place, _NONE, axis=0),
    ]
    if columns[0].size > _MOST:
      # The newcomer stays: it is about to be counted.
      rank = columns[1][:, 0].copy()
      rank[place] = np.inf
      kept = np.arange(rank.size) != int(np.argmin(rank))
      columns = [column[kept] for column in columns]
    pairs, departures, occurrences, contexts = columns
    return Cues(pairs, departures, occurrences, contexts, self.known)

  def ratios(self) -> Float64[np.ndarray, "K ways"]:
    """Departures over occurrences, 0 where that may be by chance. [K, 9]"""
    ratios = self.departures / (self.occurrences + 2)
    cues = (ratios >= _LEAST_RATIO) & (self.contexts == _SEVERAL)
    return np.where(cues, ratios, 0.0)

  def position(
    self, ids: np.ndarray, *, after: int = 0, sure: bool = False
  ) -> int:
    """Returns the position of a prompt's cue, 0 for none.

    Args:
      ids: The prompt. [t]
      after: Where to begin; what stands before is known.
      sure: Whether only pairs count that seldom occur anywhere else. How many
        of them stand before `after` is not counted then, which takes time.

    >>> cues = Cues.create()
    >>> for beginning in (4, 5):
    ...   cues = cues.observe(np.array([beginning, 7, 8, 9]), 3, 1.0)
    >>> cues.position(np.array([1, 2, 7, 8, 3]))
    4
    """
    first = max(len(ids) - _SEARCHED, after if sure else 0)
    if len(ids) - first < 2 or not self.known.any():
      return 0
    pairs = _pairs(ids[first:])
    where = np.flatnonzero(self.known[_hash(pairs)])
    found, rows = self._find(pairs[where])
    ways = _ways(rows, front=not first, behind=True)
    ratios = self.ratios()[rows[:, None], ways].max(axis=-1)
    # A pair ends one id after it begins, and what is shared right behind it.
    positions = first + where[found] + 2
    ratios[positions <= after] = 0.0
    best = float(ratios.max(initial=0.0))
    if best < (_SURE_RATIO if sure else _LEAST_RATIO):
      return 0
    follow = rows[np.flatnonzero(ratios == best)[-1]]
    return int(positions[(rows == follow) & (ratios >= _NEAR * best)][-1])


class TenantCues(NamedTuple):
  """The cues of every tenant; no method changes it.

  Attributes:
    of: The counts by tenant, whoever taught longest ago first.
  """

  of: Mapping[Hashable, Cues]

  def observe(self, departure: Departure, decay: float) -> "TenantCues":
    """Learns from where a prompt left an entry, as `Cues.observe`."""
    prompt, overlap, entry, shared = departure
    ids, before = prompt.ids, self.of.get(prompt.tenant) or Cues.create()
    # Whoever goes on from the end of an entry, or repeats it, leaves nothing.
    if overlap >= min(entry, len(ids) - 1):
      ids = ids[:overlap]
    after = before.observe(ids, overlap, decay, shared=shared)
    if after is before:
      return self
    counts = {t: cues for t, cues in self.of.items() if t != prompt.tenant}
    counts[prompt.tenant] = after
    if len(counts) > _TENANTS:
      del counts[next(iter(counts))]
    return TenantCues(counts)

  @property
  def bytes(self) -> int:
    """Bytes of all counts."""
    return sum(array.nbytes for cues in self.of.values() for array in cues)

  def position(
    self, prompt: Prompt, *, after: int = 0, sure: bool = False
  ) -> int:
    """Returns the position of a prompt's cue, as `Cues.position`.

    >>> cues = TenantCues({})
    >>> for beginning in (4, 5):
    ...   ids = np.array([beginning, 7, 8, 9, 9])
    ...   cues = cues.observe(Departure(Prompt(ids), 3), 1.0)
    >>> cues.position(Prompt(ids)), cues.position(Prompt(ids, tenant="b"))
    (3, 0)
    """
    own = self.of.get(prompt.tenant)
    if own is None:
      return 0
    return own.position(prompt.ids, after=after, sure=sure)


def _pairs(ids: np.ndarray) -> Int64[np.ndarray, "pairs"]:
  """Every two neighbouring ids as one number."""
  wide = np.asarray(ids).astype(np.int64)
  return (wide[:-1] << 32) + wide[1:]


def _ways(
  rows: Int64[np.ndarray, "n"], *, front: bool, behind: bool
) -> Int64[np.ndarray, "n 3"]:
  """The columns that occurrences of pairs count in.

  Args:
    rows: Of their pairs, in the order of their positions.
    front: Whether there may be none of them before.
    behind: Whether there may be none of them behind.

  >>> _ways(np.array([4, 4, 7]), front=True, behind=False)
  array([[0, 1, 8],
         [0, 2, 8],
         [0, 1, 8]])
  """
  ways = np.zeros((rows.size, 3), np.int64)
  ways[:, 1], ways[:, 2] = _RANKS, 2 * _RANKS
  order, number = np.argsort(rows, kind="stable"), np.arange(rows.size)
  grouped = rows[order]
  if front:
    before = number - np.searchsorted(grouped, grouped)
    ways[order, 1] = 1 + np.minimum(before, _RANKS - 1)
  if behind:
    after = np.searchsorted(grouped, grouped, side="right") - 1 - number
    ways[order, 2] = 1 + _RANKS + np.minimum(after, _RANKS - 1)
  return ways


def _context(ids: np.ndarray) -> int:
  """A hash of the last ids, 0 or above."""
  return zlib.crc32(np.asarray(ids[-_CONTEXT:], np.int64).tobytes())


def _hash(pairs: Int64[np.ndarray, "pairs"]) -> Int64[np.ndarray, "pairs"]:
  """Sixteen bits of each pair."""
  mixed = ((pairs >> 32) * _FACTOR + pairs) * _FACTOR
  return (mixed >> 20) & ((1 << _BITS) - 1)


def _hashed(pairs: Int64[np.ndarray, "K"]) -> Bool[np.ndarray, "hashes"]:
  """Which hashes some pairs have."""
  known = np.zeros(1 << _BITS, bool)
  known[_hash(pairs)] = True
  return known
