"""A second index, as simple as can be: sets of prefixes, nothing counted.

States in the order of a rule; a page for every prefix of a state or pin; every
prompt ever stored is remembered. It is what the real one is compared with.
"""

import dataclasses


@dataclasses.dataclass
class State:
  """A state of the reference."""

  prefix: tuple
  probation: bool = False


class ReferenceIndex:
  """States, pins and prompts over tuples of block keys."""

  def __init__(self, slots, pages, eviction):
    self.slots, self.pages, self.eviction = slots, pages, eviction
    self.states, self.pins, self.prompts = [], [], set()
    self.leased = [0, 0]

  def paged(self):
    held = [s.prefix for s in self.states] + [p for p, _ in self.pins]
    return {p[:d] for p in held for d in range(1, len(p) + 1)}

  def pinned(self):
    return {p for p, held in self.pins if held}

  def overlap(self, blocks):
    known = self.paged() | self.prompts
    depths = [d for d in range(1, len(blocks) + 1) if blocks[:d] in known]
    return max(depths, default=0)

  def resume(self, blocks, limit):
    depths = [len(s.prefix) for s in self.states]
    depths = [
      len(s.prefix)
      for s in self.states
      if len(s.prefix) <= limit and blocks[: len(s.prefix)] == s.prefix
    ]
    return max(depths, default=0)

  def used(self):
    return (
      len(self.states) + self.leased[0],
      len(self.paged()) + self.leased[1],
    )

  def possible(self, slots, pages):
    held = [p for p, _ in self.pins]
    fixed = {p[:d] for p in held for d in range(1, len(p) + 1)}
    return (
      len(self.pinned()) + self.leased[0] + slots <= self.slots
      and len(fixed) + self.leased[1] + pages <= self.pages
    )

  def reserve(self, slots, pages):
    if not self.possible(slots, pages):
      return False
    while True:
      used = self.used()
      if used[0] + slots <= self.slots and used[1] + pages <= self.pages:
        break
      order = sorted(
        self.states, key=lambda s: (not s.probation, self.states.index(s))
      )
      gone = next(s for s in order if s.prefix not in self.pinned())
      self.states.remove(gone)
    self.leased[0] += slots
    self.leased[1] += pages
    return True

  def hit(self, prefix):
    state = next(s for s in self.states if s.prefix == prefix)
    state.probation = False
    if self.eviction == "lru":
      self.states.remove(state)
      self.states.append(state)

  def remember(self, blocks):
    self.prompts |= {blocks[:d] for d in range(1, len(blocks) + 1)}
