"""The specification of `adaptive`, plainly: one prompt, one node at a time.

Nodes are prefixes, tuples of block keys, numbered as they are first seen; sums
are made anew whenever they are needed. float64, and nothing of ours.
"""

import math

import numpy as np

BINS, SHAPE = 30, (6, 5, 2, 5, 6, 4)


def edges():
  found = [0, 1]
  while len(found) < BINS:
    found.append(max(found[-1] + 1, round(1.42 * found[-1])))
  return [*found, 2**20]


EDGES = np.array(edges(), np.float64)
WIDTHS = np.diff(EDGES)
HORIZONS = 2.0 ** np.arange(14)


def bucket(value, limits):
  return sum(value >= limit for limit in limits)


def age_bin(age):
  return max(b for b in range(BINS) if EDGES[b] <= age)


def exposure_of(age):
  return np.clip(age - EDGES[:-1], 0, WIDTHS)


class Node:
  """A candidate."""

  def __init__(self, prefix, kind, turn, gap, now):
    self.prefix, self.kind, self.turn, self.gap = prefix, kind, turn, gap
    self.passes, self.events, self.expected, self.last = 0, 0, 0.0, now
    self.demand, self.beyond = np.zeros(14), False

  def cell(self, block):
    return (
      self.kind - 1,
      bucket(self.passes, (1, 2, 4, 8)),
      int(self.kind == 1 and self.beyond),
      bucket(self.turn, (1, 2, 4, 8)),
      0 if self.gap < 0 else 1 + bucket(self.gap, (2, 4, 6, 8)),
      bucket(len(self.prefix) * block, (2048, 8192, 32768)),
    )


class Rates:
  """Events and exposure of seven levels, and hazards."""

  def __init__(self):
    shapes = [SHAPE[:known] for known in range(7)]
    self.events = [np.zeros((*shape, BINS)) for shape in shapes]
    self.exposure = [np.zeros((*shape, BINS)) for shape in shapes]
    self.fit([])

  @staticmethod
  def levels(cell):
    return [cell[:known] for known in range(7)]

  def expose(self, cell, age):
    for level, where in enumerate(self.levels(cell)):
      self.exposure[level][where] += exposure_of(age)

  def happen(self, cell, age):
    for level, where in enumerate(self.levels(cell)):
      self.events[level][(*where, age_bin(max(0, age - 1)))] += 1

  def fit(self, waiting):
    exposure = [level.copy() for level in self.exposure]
    for cell, age in waiting:
      for level, where in enumerate(self.levels(cell)):
        exposure[level][where] += exposure_of(age)
    above = 0.02 / (EDGES[:-1] + 2)
    for level in range(7):
      above = np.broadcast_to(
        above[..., None, :] if level else above, exposure[level].shape
      )
      above = (self.events[level] + 1) / (exposure[level] + 1 / above)
    self.rates, self.total = np.minimum(above, 3.0), exposure
    self.integrals = np.cumsum(self.rates * WIDTHS, -1)

  def copied(self):
    """Events and exposure, of those who wait as well."""
    return [[one.copy() for one in self.events], self.total]

  def add(self, others, sign):
    """Counts what others have, or does so no more."""
    for ours, theirs in zip((self.events, self.exposure), others):
      for level, counted in zip(ours, theirs):
        level += sign * counted

  def integral(self, cell, age):
    where = age_bin(age)
    before = self.integrals[cell][where - 1] if where else 0.0
    return before + self.rates[cell][where] * (age - EDGES[where])


class Regime:
  """Whether what is known still tells; by kind and passes, one at a time."""

  def __init__(self):
    self.known, self.mark, self.former = {}, {}, {}
    self.ahead, self.age, self.enough = [0.0, 0.0], 0, [20, 20]

  @staticmethod
  def counts(rates, waiting):
    """Events and exposure of every kind with every number of passes."""
    found = {}
    for where in np.ndindex(*SHAPE[:2]):
      found[where] = [rates.events[2][where], rates.exposure[2][where].copy()]
    for cell, age in waiting:
      found[cell[:2]][1] += exposure_of(age)
    return {where: np.array(both) for where, both in found.items()}

  @staticmethod
  def plus(counts, others, sign=1):
    zero = np.zeros((2, BINS))
    return {
      where: counts.get(where, zero) + sign * others.get(where, zero)
      for where in np.ndindex(*SHAPE[:2])
    }

  @staticmethod
  def score(fresh, learned):
    """How likely what is fresh was, by hazards of what was learned."""

    def leaning(cells, above):
      events, exposure = sum(cells, np.zeros((2, BINS)))
      return (events + 1) / (exposure + 1 / above)

    of_all = leaning(learned.values(), 0.02 / (EDGES[:-1] + 2))
    total = 0.0
    for where, (events, exposure) in fresh.items():
      alike = [both for one, both in learned.items() if one[0] == where[0]]
      own = [learned[where]] if where in learned else []
      rates = np.minimum(leaning(own, leaning(alike, of_all)), 3.0)
      total += (events * np.log(rates) - exposure * rates).sum()
    return total

  def look(self, counts):
    """Returns what happened, None for nothing, and whether the mark moves."""
    fresh = self.plus(counts, self.known, -1)
    since = self.plus(self.known, self.mark, -1)
    expected = self.score(fresh, self.known)
    for i, guess in enumerate((since, self.plus(self.former, self.known))):
      self.ahead[i] += self.score(fresh, guess) - expected
    self.known, self.age = counts, self.age + 1
    best = max(self.ahead)
    happened, moves = None, best <= 0 or self.age == 8
    found = self.ahead.index(best)
    if best > self.enough[found] and not found:
      happened = "changed"
      aside = {where: 0.95 * both for where, both in self.mark.items()}
      self.known = self.plus(counts, aside, -1)
      self.former = self.plus(self.former, aside)
    elif best > self.enough[found]:
      happened = "returned"
      self.enough[0] *= 4
      self.known, self.former = self.plus(counts, self.former), {}
    if moves or happened:
      self.mark, self.ahead, self.age = self.known, [0.0, 0.0], 0
    return happened, moves or bool(happened)


def offsets(counts, most=2):
  """Every choice of at most two offsets, by what overlaps cost with it."""
  heavy = [z for z in range(1, 512) if counts[z] > 0.05]
  if not heavy:
    return ()
  largest = max(heavy)

  def cost(chosen):
    total = 0.0
    for z in range(1, largest + 1):
      covering = [c for c in chosen if c >= z]
      total += counts[z] * (min(covering) - z if covering else 4 * largest)
    return total

  ends = range(1, largest + 1)
  choices = [()]
  choices += [(z,) for z in ends]
  if most > 1:
    choices += [(z, y) for z in ends for y in range(1, z)]
  best = choices[0]
  for choice in choices:
    if cost(choice) < cost(best) - 1e-9:
      best = choice
  return best


def start_depth(counts):
  """The depth that spares most, if that is half of what was in common."""
  spared = [depth * sum(reversed(counts[depth:512])) for depth in range(512)]
  best = max(range(512), key=lambda depth: spared[depth])
  common = sum(depth * counts[depth] for depth in range(512))
  enough = sum(counts) >= 10 and 2 * spared[best] >= common
  return best if enough else 0


class Policy:
  """K states over a stream of prompts."""

  def __init__(self, slots, block):
    self.slots, self.block, self.step = slots, block, -1
    self.numbers, self.nodes, self.held = {}, {}, set()
    self.length_through, self.rates = {}, Rates()
    self.counts, self.chosen = np.zeros(513), ()
    self.depths, self.start = np.zeros(513), 0
    self.regime, self.happened = Regime(), []
    self.mark, self.lately = self.rates.copied(), np.zeros((2, 513))
    self.former, self.before = [], np.zeros((2, 513))

  def serve(self, keys):
    """One prompt; returns the depth at which it resumes."""
    self.step += 1
    self.recompute()
    path = [tuple(keys[:k]) for k in range(1, len(keys) + 1)]
    matched = sum(prefix in self.numbers for prefix in path)
    resumed = max((len(p) for p in path[:matched] if p in self.held), default=0)
    turn, gap = self.visit(path[:matched], len(path))
    if matched:
      offset = self.length_through[path[matched - 1]] - matched
      for counts in (self.counts, self.lately[0]):
        counts *= 0.998
        counts[min(offset, 512)] += 1
      if path[matched - 1] not in self.nodes:
        for counts in (self.depths, self.lately[1]):
          counts *= 0.998
          counts[min(matched, 512)] += 1
    for prefix in path:
      self.numbers.setdefault(prefix, len(self.numbers) + 1)
      self.length_through[prefix] = len(keys)
    offered = self.candidates(path, matched, resumed, turn, gap)
    self.held |= set(offered[-self.slots :])
    while len(self.held) > self.slots:
      self.held.remove(self.worst())
    return resumed

  def visit(self, known, length):
    turn, gap, first = 0, -1.0, True
    for prefix in reversed(known):
      node = self.nodes.get(prefix)
      if node is None:
        continue
      cell, age = node.cell(self.block), self.step - node.last
      self.rates.expose(cell, age)
      node.expected += self.rates.integral(cell, age)
      newest = math.log2(age)
      node.gap = newest if node.gap < 0 else (node.gap + newest) / 2
      if first:
        self.rates.happen(cell, age)
        node.events += 1
        gap = -1.0 if node.kind == 2 else node.gap
      first = False
      turn += node.kind == 1
      node.passes += 1
      node.last, node.beyond = self.step, length > len(prefix)
      self.want(node)
    return turn, gap

  def want(self, node):
    cell, age = node.cell(self.block), self.step - node.last
    so_far = self.rates.integral(cell, age)
    frailty = (node.events + 2) / (node.expected + so_far + 2)
    node.demand = np.array(
      [
        frailty * (self.rates.integral(cell, age + horizon) - so_far)
        for horizon in HORIZONS
      ]
    )

  def recompute(self):
    refit = self.step % 50 == 25
    if refit:
      self.refit(
        [(n.cell(self.block), self.step - n.last) for n in self.nodes.values()]
      )
      self.chosen = offsets(self.counts)
      self.start = start_depth(self.depths)
    elif self.step % 10:
      return
    for prefix, node in self.nodes.items():
      asleep = self.step - node.last > (12_000 if refit else 4_000)
      if asleep and prefix not in self.held:
        node.demand = np.zeros(14)
      else:
        self.want(node)

  def refit(self, waiting):
    counts = self.regime.counts(self.rates, waiting)
    happened, moves = self.regime.look(counts)
    if happened == "changed":
      aside = [[0.95 * one for one in both] for both in self.mark]
      self.rates.add(aside, -1)
      self.former.append(aside)
      before = np.array([self.counts, self.depths]) - self.lately
      before = 0.95 * np.maximum(before, 0.0)
      self.counts -= before[0]
      self.depths -= before[1]
      self.before += before
    if happened == "returned":
      for aside in self.former:
        self.rates.add(aside, 1)
      self.counts += self.before[0]
      self.depths += self.before[1]
      self.former, self.before = [], np.zeros((2, 513))
    if happened:
      self.happened.append(happened)
    self.rates.fit(waiting)
    if moves:
      self.mark, self.lately = self.rates.copied(), np.zeros((2, 513))

  def candidates(self, path, matched, resumed, turn, gap):
    length, wanted = len(path), {}
    proposed = [(length, 1), (matched if matched < length else 0, 2)]
    proposed += [(length - z, 3 + i) for i, z in enumerate(self.chosen)]
    if matched < self.start < length:
      proposed += [(self.start, 6)]
    if len(self.held) < self.slots:
      proposed += [(2**i, 5) for i in range(20) if 2**i < length]
    for depth, kind in proposed:
      if depth > 0:
        wanted[depth] = min(kind, wanted.get(depth, kind))
    for depth, kind in list(wanted.items()):
      prefix = path[depth - 1]
      if prefix not in self.nodes and kind > 2 and depth <= resumed:
        del wanted[depth]
      elif prefix not in self.nodes:
        node = Node(prefix, kind, turn, -1.0 if kind == 2 else gap, self.step)
        self.nodes[prefix] = node
        self.want(node)
    return [
      prefix
      for depth, prefix in enumerate(path, start=1)
      if depth > resumed
      and prefix not in self.held
      and (depth in wanted or (depth <= matched and prefix in self.nodes))
    ]

  def holder(self, prefix):
    while prefix and prefix not in self.held:
      prefix = prefix[:-1]
    return prefix

  def worst(self):
    flows = {prefix: np.zeros(14) for prefix in self.held}
    for prefix, node in self.nodes.items():
      if holder := self.holder(prefix):
        flows[holder] += node.demand

    def index(prefix):
      spared = len(prefix) - len(self.holder(prefix[:-1]))
      rate = max((flows[prefix] / HORIZONS).max(), 1e-12)
      return rate * spared * self.block

    return min(self.held, key=lambda p: (index(p), self.numbers[p]))
