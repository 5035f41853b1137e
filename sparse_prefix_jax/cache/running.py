"""A running sequence: what a caller holds of it, and what the store knows.

Only the verbs of `cache/store.py` change a `Running`.
"""

import dataclasses
from collections.abc import Hashable

import numpy as np

from sparse_prefix_jax.cache.index import Entry, Match, Pin, State
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.placement import Features

NO_SLOT = -1
"""Where no slot holds a carry: the recurrence starts from zeros."""


@dataclasses.dataclass(frozen=True)
class SequenceHandle:
  """Handle of a running sequence, as `prefill` and `decode` return it.

  A handle is used once: `decode` returns the next one, `release` ends it. It
  holds no array; the cache that made it does.

  Attributes:
    number: Which sequence; no two of a process have the same.
    length: Tokens processed so far, prompt and decoded.
  """

  number: int
  length: int


class TokenBuffer:
  """Token ids that grow at the end, by doubling.

  >>> buffer = TokenBuffer(np.array([1, 2], np.int32))
  >>> buffer.append(3)
  >>> buffer.ids.tolist()
  [1, 2, 3]
  """

  def __init__(self, ids: np.ndarray) -> None:
    """Begins with some ids, which are not copied before the first append."""
    self._array, self._size = ids, ids.size

  @property
  def ids(self) -> np.ndarray:
    """A view of all ids, int32. [t]"""
    return self._array[: self._size]

  def append(self, token: int) -> None:
    """Adds one id, in constant time on average."""
    if self._size == self._array.size or not self._array.flags.owndata:
      grown = np.empty(max(64, 2 * self._size), np.int32)
      grown[: self._size] = self.ids
      self._array = grown
    self._array[self._size] = token
    self._size += 1

  def copy(self) -> "TokenBuffer":
    """The same ids, to go on differently."""
    return TokenBuffer(self.ids.copy())


@dataclasses.dataclass(eq=False)
class Running:
  """What a sequence owns and pins until it is closed.

  Attributes:
    number: Which sequence.
    request: The prompt, as it was asked for.
    match: What was stored of it when it was opened.
    tokens: All ids so far; empty for hashed blocks.
    length: Tokens booked so far, prompt and decoded.
    blocks: Keys of the whole chunks so far.
    pages: Page of every chunk begun, in order.
    running_slot: Leased slot of the carry inside a chunk.
    own_slot: Leased slot for lattice carries of its own; -1 once it is given
      to the tree.
    lattice_slot: Slot of the carry at the last lattice point: its own, one of
      the tree that is pinned, or ZERO (-1).
    carry_slot: Slot of the carry where the computed part of the prompt ends.
    resumed: Position of the state that it resumed from.
    computed: Tokens of the prompt whose programs were dispatched.
    stored: Leading chunks whose pages the tree owns.
    pin: Protects those, and the state at their end.
    captures: Leased slot by position, of the states still to be captured.
    captured: Positions of the states that were or will be captured.
    kept: Positions that the placement and the anchors ask to keep.
    claims: States of the tree that it claims, by depth in chunks.
    entry: What is remembered of its prompt.
    features: What the placement knows of its prompt.
    exact: Whether it decodes by re-running its chunk; None before it decodes.
  """

  number: int
  request: Request
  match: Match
  tokens: TokenBuffer
  length: int
  blocks: list[Hashable]
  pages: list[int]
  running_slot: int
  own_slot: int
  lattice_slot: int
  carry_slot: int
  resumed: int
  computed: int
  stored: int
  pin: Pin
  captures: dict[int, int] = dataclasses.field(default_factory=dict)
  captured: tuple[int, ...] = ()
  kept: tuple[int, ...] = ()
  claims: dict[int, State] = dataclasses.field(default_factory=dict)
  entry: Entry | None = None
  features: Features | None = None
  exact: bool | None = None

  @property
  def handle(self) -> SequenceHandle:
    """What a caller holds of it now."""
    return SequenceHandle(self.number, self.length)

  @property
  def prompt_length(self) -> int:
    """Tokens of its prompt."""
    return self.request.length

  @property
  def decoded(self) -> int:
    """Tokens decoded after the prompt."""
    return self.length - self.request.length

  @property
  def states(self) -> int:
    """How many states that it claims are stored now."""
    return sum(state.alive for state in self.claims.values())

  @property
  def own_carry(self) -> bool:
    """Whether its own slot holds the carry at the last lattice point."""
    return self.own_slot >= 0 and self.lattice_slot == self.own_slot

  def leased_slots(self) -> list[int]:
    """Slots that no tree owns."""
    held = [self.running_slot, self.own_slot, *self.captures.values()]
    return [slot for slot in held if slot >= 0]

  def leased_pages(self) -> list[int]:
    """Pages that no tree owns."""
    return self.pages[self.stored :]
