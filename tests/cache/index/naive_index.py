"""The index again, as simply as can be: a list of prompts, all else recounted.

Token ids are compared one by one; what is held is recomputed after every step
from who is stored, pinned and leased. Nothing of the library is imported.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(eq=False)
class Prompt:
  """A stored prompt: `handle` is the real index's entry."""

  salt: bytes
  tokens: tuple[int, ...]
  claims: set[int]
  handle: Any = None


@dataclasses.dataclass(eq=False)
class Pinned:
  """A pinned prefix, and whether it had a slot when it was pinned."""

  salt: bytes
  tokens: tuple[int, ...]
  has_slot: bool
  handle: Any = None


class NaiveIndex:
  """State of the model; `pages` and `slots` map prefixes to numbers."""

  def __init__(self, budget, chunk, lru):
    self.budget, self.chunk, self.lru = budget, chunk, lru
    self.prompts: list[Prompt] = []  # Next victim first.
    self.pins: list[Pinned] = []
    self.pages: dict[tuple, int] = {}
    self.slots: dict[tuple, int] = {}
    self.claimed: dict[tuple, list[Prompt]] = {}
    self.latest: dict[tuple, Prompt] = {}
    self.leased_slots: set[int] = set()
    self.leased_pages: set[int] = set()
    self.evictions = 0

  def prefixes(self, salt, tokens):
    """Every prefix of whole blocks, shortest first."""
    c = self.chunk
    return [(salt, tokens[: i * c]) for i in range(1, len(tokens) // c + 1)]

  def live_pages(self):
    holders = [*self.prompts, *self.pins]
    return {p for h in holders for p in self.prefixes(h.salt, h.tokens)}

  def live_slots(self):
    c = self.chunk
    claims = {
      (p.salt, p.tokens[: d * c]) for p in self.prompts for d in p.claims
    }
    return claims | {(p.salt, p.tokens) for p in self.pins if p.has_slot}

  def sweep(self):
    """Forgets numbers and memories of what is not alive any more."""
    pages, slots = self.live_pages(), self.live_slots()
    self.pages = {k: v for k, v in self.pages.items() if k in pages}
    self.slots = {k: v for k, v in self.slots.items() if k in slots}
    self.latest = {k: p for k, p in self.latest.items() if p in self.prompts}
    self.claimed = {
      k: [p for p in ps if p in self.prompts] for k, ps in self.claimed.items()
    }

  def held(self):
    return (
      len(self.live_slots()) + len(self.leased_slots),
      len(self.live_pages()) + len(self.leased_pages),
    )

  def fits(self, slots, pages):
    b = self.budget
    return (
      slots * b.slot_bytes + pages * b.page_bytes <= b.capacity_bytes
      and (b.slots is None or slots <= b.slots)
      and (b.pages is None or pages <= b.pages)
    )

  def match(self, salt, tokens, limit):
    """`(overlap_tokens, overlap_blocks, resume, slot, pages)`."""
    overlap = 0
    for holder in [*self.prompts, *self.pins]:
      if holder.salt == salt:
        same = 0
        for mine, other in zip(tokens, holder.tokens):
          if mine != other:
            break
          same += 1
        overlap = max(overlap, same)
    path = self.prefixes(salt, tokens[:overlap])
    usable = path if limit is None else path[:limit]
    depths = [i + 1 for i, p in enumerate(usable) if p in self.slots]
    resume = max(depths, default=0)
    slot = self.slots[path[resume - 1]] if resume else -1
    pages = tuple(self.pages[p] for p in path[:resume])
    return overlap, len(path), resume, slot, pages

  def touch(self, salt, tokens, limit):
    _, depth, resume, _, _ = self.match(salt, tokens, limit)
    if not depth:
      return
    key = (salt, tokens[: (resume or depth) * self.chunk])
    if resume:
      used = (self.claimed.get(key) or [None])[-1]
    else:
      used = self.latest.get(key)
    if used and self.lru:
      self.renew(used)

  def renew(self, prompt):
    if prompt in self.prompts:
      self.prompts.remove(prompt)
    self.prompts.append(prompt)

  def whole(self, prompt):
    return prompt.tokens[: len(prompt.tokens) // self.chunk * self.chunk]

  def in_use(self, prompt):
    """The only one to end at a block that a pin passes through."""
    end = self.whole(prompt)
    alike = [
      p for p in self.prompts if p.salt == prompt.salt and self.whole(p) == end
    ]
    pinned = any(
      p.salt == prompt.salt and p.tokens[: len(end)] == end for p in self.pins
    )
    return bool(end) and pinned and len(alike) == 1

  def evict_next(self, newest=None):
    idle = [p for p in self.prompts if p is not newest and not self.in_use(p)]
    self.remove((idle or self.prompts)[0])
    self.evictions += 1

  def remove(self, prompt):
    self.prompts.remove(prompt)
    self.sweep()

  def can_reserve(self, slots, pages):
    pinned = {p for h in self.pins for p in self.prefixes(h.salt, h.tokens)}
    states = {(p.salt, p.tokens) for p in self.pins if p.has_slot}
    return self.fits(
      len(states) + len(self.leased_slots) + slots,
      len(pinned) + len(self.leased_pages) + pages,
    )

  def reserve(self, slots, pages):
    """Evicts; the numbers are the real index's choice."""
    while True:
      held = self.held()
      if self.fits(held[0] + slots, held[1] + pages):
        return
      self.evict_next()

  def insert(self, salt, tokens, pages, slots, claim, replace):
    """Returns `(prompt, pages, slots, freed_pages, freed_slots)`."""
    path = self.prefixes(salt, tokens)
    spare_pages = [n for p, n in zip(path, pages) if self.pages.get(p, n) != n]
    spare_slots = [
      n for d, n in slots.items() if self.slots.get(path[d - 1], n) != n
    ]
    depths = set(slots) | {d for d in claim if path[d - 1] in self.slots}
    for prefix, number in zip(path, pages):
      self.pages.setdefault(prefix, number)
    for depth, number in slots.items():
      self.slots.setdefault(path[depth - 1], number)
    self.leased_pages -= set(pages)
    self.leased_slots -= set(slots.values())
    same = [p for p in self.prompts if (p.salt, p.tokens) == (salt, tokens)]
    prompt = same[0] if same else Prompt(salt, tokens, set())
    if prompt is replace:
      for depth in prompt.claims - depths:
        self.claimed[path[depth - 1]].remove(prompt)
      prompt.claims = prompt.claims & depths
    prompt.claims |= depths
    self.renew(prompt)
    for prefix in path:
      self.latest[prefix] = prompt
    for depth in depths:
      order = self.claimed.setdefault(path[depth - 1], [])
      order[:] = [p for p in order if p is not prompt] + [prompt]
    if replace is not prompt and replace in self.prompts:
      self.prompts.remove(replace)
    self.sweep()
    while len(self.prompts) > self.budget.entries:
      self.evict_next(newest=prompt)
    return (
      prompt,
      tuple(self.pages[p] for p in path),
      {d: self.slots[path[d - 1]] for d in depths},
      set(spare_pages),
      set(spare_slots),
    )
