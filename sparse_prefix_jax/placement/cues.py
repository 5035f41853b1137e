"""Which tokens tell where an entry will be left: `Cues`, of each tenant.

`conditional` learns them with its other statistics (`mixture`), `adaptive` by a
`CueLearner`.

Prompts made from a template end what they share in the same tokens: the marker
before a question, the header of a turn. An entry that matched nothing cannot
say where it will be left, but its tokens can: other entries were left right
after the same pair of ids. Pairs are what works: one id alone is found all over
a text, and that a text was seen elsewhere says nothing of where it ends.

For each pair (a, b) after which an entry was left, two counts are kept: how
often that happened, and how often the pair occurs in the prompts that left an
entry, before and behind. Their ratio

    departures / (occurrences + 2)

is high for a marker that ends what is shared wherever it stands. The last
position with the highest ratio is the cue of a prompt. Only pairs count that
were left after in two contexts: one document may be left at one place for ever,
which tells nothing of others.
"""

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

# The last ids of a prompt, in which its cue is looked for: it waits for that.
_SEARCHED = 32_768

# What stands before a pair is compared as a hash of so many ids.
_CONTEXT = 16
_SEVERAL = -1

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


class Cues(NamedTuple):
  """Counts of pairs of ids; no method changes it.

  Attributes:
    pairs: int64 [K], the pairs in ascending order, as a * 2**32 + b.
    departures: float64 [K], how often an entry was left right after each.
    occurrences: float64 [K], how often each was passed.
    contexts: int64 [K], a hash of what stood before each when it was first
      left after; `_SEVERAL` since it was in another context.
    known: bool [2**16], which hashes pairs have that are cues.
  """

  pairs: Int64[np.ndarray, "K"]
  departures: Float64[np.ndarray, "K"]
  occurrences: Float64[np.ndarray, "K"]
  contexts: Int64[np.ndarray, "K"]
  known: Bool[np.ndarray, "hashes"]

  @classmethod
  def create(cls) -> "Cues":
    """Returns counts of nothing."""
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return cls(none, nothing, nothing, none, np.zeros(1 << _BITS, bool))

  def observe(self, ids: np.ndarray, overlap: int, decay: float) -> "Cues":
    """Lets the counts fade, then learns from where a prompt left an entry.

    Args:
      ids: The prompt; the entry that it left is taken to be made alike. [t]
      overlap: How many of its first ids the entry has.
      decay: What is left of every earlier count, in (0, 1].

    Returns:
      The new counts; those that there were, where less than a pair was shared.

    >>> cues = Cues.create().observe(np.array([5, 7, 8, 7, 8]), 3, 1.0)
    >>> cues.departures, cues.occurrences
    (array([1.]), array([2.]))
    """
    if overlap < 2:
      return self
    first = max(overlap - _REACH, 0)
    ids, overlap = ids[first : overlap + _REACH], overlap - first
    passed = _pairs(ids)
    left, context = passed[overlap - 2], _context(ids[: overlap - 2])
    counts = self._faded(decay)._with(left, context)
    place = np.searchsorted(counts.pairs, passed)
    found = counts.pairs[np.minimum(place, counts.pairs.size - 1)] == passed
    counts.occurrences[:] += np.bincount(
      place[found], minlength=counts.pairs.size
    )
    here = int(np.searchsorted(counts.pairs, left))
    counts.departures[here] += 1
    if counts.contexts[here] != context:
      counts.contexts[here] = _SEVERAL
    return counts._replace(known=_hashed(counts.pairs[counts.ratios() > 0]))

  def _faded(self, decay: float) -> "Cues":
    """The same counts, which may be changed, after some time."""
    return self._replace(
      departures=self.departures * decay,
      occurrences=self.occurrences * decay,
      contexts=self.contexts.copy(),
    )

  def _with(self, pair: np.int64, context: int) -> "Cues":
    """The same counts with room for a pair that may be new."""
    place = int(np.searchsorted(self.pairs, pair))
    if place < self.pairs.size and self.pairs[place] == pair:
      return self
    columns = [
      np.insert(self.pairs, place, pair),
      np.insert(self.departures, place, 0.0),
      np.insert(self.occurrences, place, 0.0),
      np.insert(self.contexts, place, context),
    ]
    if columns[0].size > _MOST:
      # The newcomer stays: it is about to be counted.
      rank = columns[1].copy()
      rank[place] = np.inf
      kept = np.arange(rank.size) != int(np.argmin(rank))
      columns = [column[kept] for column in columns]
    pairs, departures, occurrences, contexts = columns
    return Cues(pairs, departures, occurrences, contexts, self.known)

  def ratios(self) -> Float64[np.ndarray, "K"]:
    """Departures over occurrences, 0 where that may be by chance. [K]"""
    ratios = self.departures / (self.occurrences + 2)
    cues = (ratios >= _LEAST_RATIO) & (self.contexts == _SEVERAL)
    return np.where(cues, ratios, 0.0)

  def position(self, ids: np.ndarray, *, sure: bool = False) -> int:
    """Returns the position of a prompt's cue, 0 for none.

    Args:
      ids: The prompt. [t]
      sure: Whether only pairs count that seldom occur anywhere else.

    >>> cues = Cues.create()
    >>> for beginning in (4, 5):
    ...   cues = cues.observe(np.array([beginning, 7, 8]), 3, 1.0)
    >>> cues.position(np.array([1, 2, 7, 8, 3]))
    4
    """
    if len(ids) < 2 or not self.known.any():
      return 0
    first = max(len(ids) - _SEARCHED, 0)
    pairs = _pairs(ids[first:])
    candidates = np.flatnonzero(self.known[_hash(pairs)])
    place = np.searchsorted(self.pairs, pairs[candidates])
    place = np.minimum(place, self.pairs.size - 1)
    same = self.pairs[place] == pairs[candidates]
    candidates, ratios = candidates[same], self.ratios()[place[same]]
    least = _SURE_RATIO if sure else _LEAST_RATIO
    if not candidates.size or ratios.max() < least:
      return 0
    # A pair ends one id after it begins, and what is shared right behind it.
    return first + int(candidates[ratios == ratios.max()][-1]) + 2


class TenantCues(NamedTuple):
  """The cues of every tenant; no method changes it.

  Attributes:
    of: The counts by tenant, whoever taught longest ago first.
  """

  of: Mapping[Hashable, Cues]

  def observe(self, prompt: Prompt, overlap: int, decay: float) -> "TenantCues":
    """Learns from where a prompt left an entry, as `Cues.observe`."""
    counts = dict(self.of)
    own = counts.pop(prompt.tenant, None) or Cues.create()
    counts[prompt.tenant] = own.observe(prompt.ids, overlap, decay)
    if len(counts) > _TENANTS:
      del counts[next(iter(counts))]
    return TenantCues(counts)

  @property
  def bytes(self) -> int:
    """Bytes of all counts."""
    return sum(array.nbytes for cues in self.of.values() for array in cues)

  def position(self, prompt: Prompt, *, sure: bool = False) -> int:
    """Returns the position of a prompt's cue, as `Cues.position`.

    >>> cues = TenantCues({})
    >>> for beginning in (4, 5):
    ...   ids = np.array([beginning, 7, 8, 9])
    ...   cues = cues.observe(Prompt(ids), 3, 1.0)
    >>> cues.position(Prompt(ids)), cues.position(Prompt(ids, tenant="b"))
    (3, 0)
    """
    own = self.of.get(prompt.tenant)
    return 0 if own is None else own.position(prompt.ids, sure=sure)


class CueLearner:
  """The cues of `adaptive`, which learns from a prompt when it has the time.

  What a prompt teaches is noted, and learned by `catch_up`, or else before the
  next prompt is asked about: its cue is a function of the calls, never of when
  there was time.

  >>> learner = CueLearner(chunk=2)
  >>> for beginning in (4, 5):
  ...   prompt = Prompt(np.array([beginning, 7, 8, 9, 9]))
  ...   learner.observe(3, left=5, prompt=prompt)
  >>> learner.cue(Prompt(np.array([1, 2, 7, 8, 3])), 0)
  4
  """

  def __init__(self, *, chunk: int, decay: float = 0.99) -> None:
    """Knows nothing yet.

    Args:
      chunk: Tokens of a chunk, c.
      decay: What an overlap leaves of the counts of its tenant.
    """
    self._chunk, self._decay = chunk, decay
    # One attribute, so that an interruption finds the one or the other.
    self._state: tuple[TenantCues, tuple[Prompt, int] | None] = (
      TenantCues({}),
      None,
    )

  def observe(self, overlap: int, *, left: int, prompt: Prompt) -> None:
    """Notes where a prompt left an entry; learned as `Cues.observe` says.

    Args:
      overlap: How many first ids of the prompt the entry has.
      left: Tokens of the last entry that went so far. Who goes on from its end,
        or repeats it, shows no place where entries are left.
      prompt: The tokens that left it.
    """
    self.catch_up()
    if self._chunk <= overlap < min(left, len(prompt.ids) - 1):
      self._state = (self._state[0], (prompt, overlap))

  def catch_up(self) -> None:
    """Learns what was noted."""
    cues, noted = self._state
    if noted is not None:
      self._state = (cues.observe(*noted, self._decay), None)

  def cue(self, prompt: Prompt, overlap: int) -> int:
    """Says where the tokens of a prompt tell that it will be left.

    Only those beyond what is known are asked: where that is left is counted.
    A prompt that has matched something follows a sure cue only.

    Args:
      prompt: Its tokens.
      overlap: How many of them equal a stored prefix.

    Returns:
      A position in tokens, 0 for none.
    """
    self.catch_up()
    beyond = prompt._replace(ids=prompt.ids[overlap:])
    sure = overlap >= self._chunk
    found = self._state[0].position(beyond, sure=sure)
    return overlap + found if found else 0

  @property
  def bytes(self) -> int:
    """Bytes of host memory that the counts take."""
    return self._state[0].bytes


def _pairs(ids: np.ndarray) -> Int64[np.ndarray, "pairs"]:
  """Every two neighbouring ids as one number."""
  wide = np.asarray(ids).astype(np.int64)
  return (wide[:-1] << 32) + wide[1:]


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
