"""Where an entry will be left, given what is known of it: `Mixture`.

A later request that matches an entry leaves it at some depth t, its overlap.
Production traces say that t is a mixture of atoms with a thin tail: the end of
the entry (a conversation goes on, the next question is as short as the last
one), the depth at which the entry itself left what it matched (both ask about
one document), and depths that all entries share (a system prompt). One
histogram over absolute depth smears the first two. And prompts made from a
template are left where its tokens say (`cues`). So offsets are counted from
four origins,

    p(t | entry) = sum over k of  share_k(class) h_k(t - origin_k),
    origin = 0, the entry's own overlap, its end, its cue,

each h_k with a uniform rest for what was never seen. Which origin explains an
overlap is not observed. Shares and histograms learn by responsibilities, one
step of expectation maximisation per overlap, so that an offset which recurs
from one origin soon belongs to that origin. No share falls below a floor, or
traffic that changes after a long time of one kind could not be learned. The
classes are entries that matched nothing and entries that did, each with a cue
or without. Of those with a cue nothing is known when the first one comes: they
start from what is known without, and from the guess that the cue is right.

How often an entry will be left at all depends on how long ago the entry that it
matched was stored: whoever follows a popular or an old one is needed sooner.
Rates are counted by that age, in powers of two. Rate times p are the weights of
the placement problem of one entry.

Nothing here looks ahead, and only `cues` at tokens, each tenant's apart.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.cues import Departure, Prompt, TenantCues
from sparse_prefix_jax.placement.features import Features
from sparse_prefix_jax.placement.offsets import Offsets

# Overlaps that the uniform rest of a histogram is worth.
_REST = 0.5

# Least share of an origin, of all that overlaps of its class were blamed on.
_LEAST_SHARE = 1e-3

# Which origin is the cue, and how many overlaps speak for an entry being left
# right there before any was seen. As many speak for the shares without a cue.
_CUE, _CUES_TELL = 3, 1.0

# Bins of ages: bin b for ages below 2**b, bin 0 for entries without a match.
_AGES = 64

# What may become a place of a state: offsets of at least this share of what was
# seen from their origin, and this many depths at equal distances.
_LEAST_WEIGHT = 1 / 128
_SPACED = 64


@dataclass(frozen=True)
class Mixture:
  """Statistics of where entries are left, and how often.

  No method changes it: `observe` returns a new one, so that whoever plans from
  one beside the requests has nothing to copy.

  Attributes:
    chunk: Tokens per depth bin.
    last: The deepest depth bin; what lies deeper counts in it.
    decay: What an observation leaves of the rates, and an overlap of the other
      statistics.
    offsets: Counts of offsets in bins, by origin.
    shares: float64 [4, 4], how many overlaps were blamed on each origin, by
      class.
    left: float64 [ages], how often entries of an age were matched.
    entries: float64 [ages], how many entries of an age there were.
    cues: Which tokens entries were left after.
  """

  chunk: int
  last: int
  decay: float
  offsets: tuple[Offsets, ...]
  shares: Float64[np.ndarray, "4 4"]
  left: Float64[np.ndarray, "ages"]
  entries: Float64[np.ndarray, "ages"]
  cues: TenantCues

  @classmethod
  def create(cls, *, chunk: int, depths: int, decay: float) -> "Mixture":
    """Returns statistics of nothing.

    Args:
      chunk: Tokens per depth bin.
      depths: Number of depth bins N, at least 2.
      decay: As in the attributes.

    >>> Mixture.create(chunk=64, depths=8, decay=0.99).last
    7
    """
    return cls(
      chunk=chunk,
      last=depths - 1,
      decay=decay,
      offsets=(Offsets.create(),) * 4,
      # Without a match the second origin is the first, and never used; without
      # a cue the last one is. With one, `_shares` adds those without.
      shares=np.array(
        [
          [1.0, 0.0, 1.0, 0.0],
          [1.0, 1.0, 1.0, 0.0],
          [0.0, 0.0, 0.0, 1.0],
          [0.0, 0.0, 0.0, 1.0],
        ]
      ),
      left=np.zeros(_AGES, np.float64),
      entries=np.zeros(_AGES, np.float64),
      cues=TenantCues({}),
    )

  def observe(
    self,
    overlap: int,
    *,
    entry: Features,
    matched: Features | None,
    prompt: Prompt | None = None,
  ) -> "Mixture":
    """Learns from one request.

    Args:
      overlap: Its leading tokens that equal a stored prefix.
      entry: What is known of the entry that it leaves.
      matched: What is known of the entry that it matched; None for none, or
        one unknown.
      prompt: Its tokens, where they are known.

    Returns:
      The new statistics.

    >>> empty = Mixture.create(chunk=64, depths=8, decay=0.99)
    >>> entry = Features(length=256)
    >>> empty.observe(192, entry=entry, matched=entry).offsets[2].where
    array([-1])
    """
    entries, left = self.entries * self.decay, self.left * self.decay
    entries[_age_bin(entry)] += 1.0
    counted = replace(self, entries=entries, left=left)
    if matched is None or min(overlap, matched.length) < self.chunk:
      return counted
    left[_age_bin(matched)] += 1.0
    learned = counted._learn(overlap, matched)
    if prompt is None:
      return learned
    departure = Departure(prompt, overlap, matched.length, matched.overlap)
    return replace(learned, cues=self.cues.observe(departure, self.decay))

  def _learn(self, overlap: int, matched: Features) -> "Mixture":
    """One step of expectation maximisation for the depth of an overlap."""
    origins = self._origins(matched)
    depth = min(overlap // self.chunk, self._end(matched))
    kind = self._class(matched)
    blame = self._shares(kind) * self._densities(depth, matched)
    blame /= blame.sum()
    shares = self.shares.copy()
    shares[kind] = _floored(shares[kind] * self.decay + blame)
    offsets = tuple(
      counts.observe(depth - origin, float(weight), self.decay)
      for counts, origin, weight in zip(self.offsets, origins, blame)
    )
    return replace(self, shares=shares, offsets=offsets)

  def _class(self, features: Features) -> int:
    """Whether an entry matched a whole chunk, and 2 more if it has a cue."""
    matched = features.overlap >= self.chunk
    return int(matched) + 2 * int(features.cue >= self.chunk)

  def _shares(self, kind: int) -> Float64[np.ndarray, "4"]:
    """How many overlaps of a class are blamed on each origin."""
    own, plain = self.shares[kind], self.shares[kind % 2]
    return own if kind < 2 else own + _CUES_TELL / plain.sum() * plain

  def _end(self, features: Features) -> int:
    """The deepest depth bin of an entry."""
    return min(features.length // self.chunk, self.last)

  def _origins(self, features: Features) -> tuple[int, int, int, int]:
    """Depth bins that offsets are counted from."""
    end = self._end(features)
    own, cue = features.overlap // self.chunk, features.cue // self.chunk
    return 0, min(own, end), end, min(cue, end)

  def _seen(self, features: Features) -> "_Seen":
    """All that `survival_at` and `places` look at."""
    origins = self._origins(features)
    shares = self._shares(self._class(features))
    weights = (self.rate(features) / shares.sum() * shares).tolist()
    # An origin without a share explains nothing, and need not be looked at.
    used = [k for k, weight in enumerate(weights) if weight > 0]
    return _Seen(
      end=self._end(features),
      origins=[origins[k] for k in used],
      weights=[weights[k] for k in used],
      counts=[self._within(k, origins[k], self._end(features)) for k in used],
    )

  def _within(self, k: int, origin: int, end: int) -> Offsets:
    """An origin's counts, as far as they lie at the depths 1 .. end."""
    counts = self.offsets[k]
    if k == _CUE:
      counts = counts.observe(0, _CUES_TELL, 1.0)
    return counts.between(1 - origin, end - origin)

  def _densities(
    self, depth: int, features: Features
  ) -> Float64[np.ndarray, "4"]:
    """Each origin's probability of one depth in 1 .. end."""
    densities, end = [], self._end(features)
    for k, origin in enumerate(self._origins(features)):
      counts = self._within(k, origin, end)
      rest = _REST + counts.others
      here = counts.count(depth - origin) + rest / end
      densities.append(here / (float(counts.counts.sum()) + rest))
    return np.array(densities)

  def rate(self, features: Features) -> float:
    """Says how many requests will match an entry like this, up to a factor.

    Entries whose time is not over yet are counted like the others, which makes
    every rate too small by about as much; only their ratios matter.

    Args:
      features: What is known of the entry.

    >>> Mixture.create(chunk=64, depths=8, decay=0.99).rate(Features(128))
    0.5
    """
    known = _age_bin(features)
    every = (self.left.sum() + 0.5) / (self.entries.sum() + 1.0)
    return float((self.left[known] + every) / (self.entries[known] + 1.0))

  def survival_at(
    self, depths: Int64[np.ndarray, "n"], features: Features
  ) -> Float64[np.ndarray, "n"]:
    """Says how many requests will leave an entry at a depth or deeper, G(s).

    Args:
      depths: [n] Depth bins s, each from 1 to the entry's last whole chunk.
      features: What is known of the entry.

    >>> empty = Mixture.create(chunk=64, depths=8, decay=0.99)
    >>> empty.survival_at(np.array([1, 2]), Features(128))
    array([0.5 , 0.25])
    """
    return self._seen(features).survival_at(depths)

  def places(self, features: Features) -> Int64[np.ndarray, "n"]:
    """Depths at which an entry may keep states, in ascending order.

    Those at which entries were left often, and some at equal distances. What
    such places save is known exactly, and with few of them a plan is made in
    no time. An entry of up to 64 chunks has all its depths among them.

    Args:
      features: What is known of the entry.

    >>> empty = Mixture.create(chunk=64, depths=8, decay=0.99)
    >>> empty.places(Features(256))
    array([1, 2, 3, 4])
    """
    return self._seen(features).places()

  def staircase(
    self, features: Features
  ) -> tuple[Int64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """Returns `places` and the survival there.

    Args:
      features: What is known of the entry.

    >>> empty = Mixture.create(chunk=64, depths=8, decay=0.99)
    >>> empty.staircase(Features(128))
    (array([1, 2]), array([0.5 , 0.25]))
    """
    seen = self._seen(features)
    places = seen.places()
    return places, seen.survival_at(places)


@lru_cache(1024)
def _spaced(end: int) -> tuple[int, ...]:
  """Depths at equal distances in an entry that ends at a depth.

  >>> _spaced(3)
  (1, 2, 3)
  """
  count = min(end, _SPACED)
  return tuple(i * end // count + 1 for i in range(count))


class _Seen(NamedTuple):
  """What was seen of entries like one, from each origin that has a share.

  Attributes:
    end: The deepest depth of the entry.
    origins: Depths that offsets are counted from.
    weights: Requests that will leave the entry because of each origin.
    counts: Counts of the offsets that lie within the entry.
  """

  end: int
  origins: list[int]
  weights: list[float]
  counts: list[Offsets]

  def places(self) -> Int64[np.ndarray, "n"]:
    """As `Mixture.places`."""
    found = {*_spaced(self.end)}
    for counts, origin in zip(self.counts, self.origins):
      total = float(counts.counts.sum()) + counts.others
      often = counts.where[counts.counts >= _LEAST_WEIGHT * total]
      found.update((often + origin).tolist())
    # A sort of NumPy would hand the interpreter to other threads.
    return np.array(sorted(found), np.int64)

  def survival_at(
    self, depths: Int64[np.ndarray, "n"]
  ) -> Float64[np.ndarray, "n"]:
    """As `Mixture.survival_at`, with one search for all origins at once.

    Offsets of the k-th origin are moved by k times as much as they can differ,
    so that they stay in order when they are put behind each other.
    """
    apart = 2 * self.end + 1
    moved = [k * apart - origin for k, origin in enumerate(self.origins)]
    where = [c.where + k * apart for k, c in enumerate(self.counts)]
    first = np.searchsorted(
      np.concatenate(where), np.add.outer(np.array(moved), depths)
    )
    beyond = (self.end + 1 - depths) / max(self.end, 1)
    survival, skipped = np.zeros(depths.size), 0
    for row, counts, weight in zip(first, self.counts, self.weights):
      tails, rest = counts.tails(), _REST + counts.others
      mass = tails[row - skipped] + rest * beyond
      survival += weight / (float(tails[0]) + rest) * mass
      skipped += counts.where.size
    return survival


def _floored(shares: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "4"]:
  """Lifts shares that nearly vanished; an origin without one gets none."""
  least = _LEAST_SHARE * shares.sum()
  return np.where(shares > 0, np.maximum(shares, least), 0.0)


def _age_bin(features: Features) -> int:
  """The bin of an age, in powers of two.

  >>> [_age_bin(Features(1, age=age)) for age in (0, 1, 2, 3, 4)]
  [0, 1, 2, 2, 3]
  """
  return min(features.age.bit_length(), _AGES - 1)
