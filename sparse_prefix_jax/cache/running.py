"""A running sequence: what a caller holds of it, and what the store knows.

Only the verbs of `cache/store.py` change a `Running`.
"""

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.cache.index import Entry, Lease, Match, Pin, State
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.placement import Features
from sparse_prefix_jax.whole_numbers import check_whole

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


def check_handle(handle: object) -> None:
  """Refuses what is no handle.

  Raises:
    ValueError: If it is anything else.
  """
  if not isinstance(handle, SequenceHandle):
    shown = brief(handle)
    raise ValueError(
      f"a sequence is a handle that prefill or decode returned, got {shown}."
    )


class TokenBuffer:
  """Token ids that grow at the end, by doubling.

  >>> buffer = TokenBuffer(np.array([1, 2], np.int32))
  >>> buffer.append(3)
  >>> buffer.ids.tolist(), len(buffer)
  ([1, 2, 3], 3)
  """

  def __init__(self, ids: np.ndarray) -> None:
    """Begins with some ids, which are not copied before the first append."""
    self._array, self._size = ids, ids.size

  def __len__(self) -> int:
    """How many ids there are."""
    return self._size

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

  def pop(self) -> None:
    """Takes the last id back."""
    self._size -= 1

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
    asked: Positions that anything asked to keep, whether or not there was room.
    claims: States of the tree that it claims, by depth in chunks.
    entry: What is remembered of its prompt.
    features: What the placement knows of its prompt.
    expected_lost: Tokens of what was known that it was expected to compute
      again; None where nobody can tell.
    exact: Whether it decodes by re-running its chunk; None before it decodes.
    overwritten: Whether its running slot holds a token that was taken back; it
      can only be closed then.
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
  asked: frozenset[int] = frozenset()
  claims: dict[int, State] = dataclasses.field(default_factory=dict)
  entry: Entry | None = None
  features: Features | None = None
  expected_lost: float | None = None
  exact: bool | None = None
  overwritten: bool = False

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
  def prefilled(self) -> bool:
    """Whether all of its prompt was dispatched."""
    return self.computed >= self.request.length

  @property
  def unread(self) -> int:
    """Tokens booked whose ids are not known yet; hashed blocks have none."""
    return self.length - len(self.tokens) if len(self.tokens) else 0

  def completed(self, chunk: int) -> bool:
    """Whether decoding completed a chunk that is not canonical yet.

    Args:
      chunk: Tokens of a chunk, c.
    """
    ahead = self.computed < self.length
    return self.prefilled and ahead and self.length % chunk == 0

  @property
  def states(self) -> int:
    """How many states that it claims are stored now."""
    return sum(state.alive for state in self.claims.values())

  @property
  def own_carry(self) -> bool:
    """Whether its own slot holds the carry at the last lattice point."""
    return self.own_slot >= 0 and self.lattice_slot == self.own_slot

  def check_form(self, exact: bool) -> None:
    """Refuses to decode in another form than before, or after a retraction.

    Raises:
      ValueError: If it has decoded in the other form, or a token of it was
        taken back.
    """
    if self.overwritten:
      raise ValueError(
        f"{self.handle} had a token taken back; it can only be closed."
      )
    if self.exact not in (None, exact):
      raise ValueError(
        f"{self.handle} has been decoded with exact={self.exact}; a sequence "
        "keeps to one form."
      )

  def kept_tokens(self, keep: int | None) -> int:
    """How many of its tokens to store, None for all.

    Raises:
      ValueError: If `keep` is no integer, negative, or more than its tokens.
    """
    kept = self.length if keep is None else check_whole("keep", keep)
    if not 0 <= kept <= self.length:
      raise ValueError(
        f"keep is {brief(kept)}; it must be 0 to the {self.length} tokens of "
        f"{self.handle}."
      )
    return kept

  def leased_slots(self) -> list[int]:
    """Slots that no tree owns; none while it waits in the host."""
    held = [self.running_slot, self.own_slot, *self.captures.values()]
    return [slot for slot in held if slot >= 0]

  def leased_pages(self) -> list[int]:
    """Pages that no tree owns; none while it waits in the host."""
    return [page for page in self.pages[self.stored :] if page >= 0]

  def held_slots(self) -> set[int]:
    """Slots that nobody else gets before it ends, leased or pinned."""
    pinned = [self.pin.state.number] if self.pin.state else []
    return {*self.leased_slots(), *pinned}

  def held_pages(self) -> set[int]:
    """Pages that nobody else gets before it ends, leased or pinned."""
    return {page for page in self.pages if page >= 0}


class Copies(NamedTuple):
  """What a fork has to copy in the pools, all numbers by position.

  Attributes:
    slots: Slots to copy from, and to.
    page: The page to copy from, and to; None where no chunk is begun.
  """

  slots: tuple[tuple[int, int], tuple[int, int]]
  page: tuple[int, int] | None


def copies_of(source: Running, twin: Running, partial: int) -> Copies:
  """Running slot, own slot and the page of the chunk that is begun.

  Args:
    source: What is forked.
    twin: Its fork.
    partial: Chunks begun and not complete, 0 or 1.
  """
  return Copies(
    slots=(
      (source.running_slot, source.own_slot),
      (twin.running_slot, twin.own_slot),
    ),
    page=(source.pages[-1], twin.pages[-1]) if partial else None,
  )


def twin_of(
  source: Running,
  number: int,
  lease: Lease,
  pin: Pin,
  claims: dict[int, State],
) -> Running:
  """A fork: the same past, with slots and a page of its own.

  Args:
    source: Its whole chunks are the tree's.
    number: Of the twin.
    lease: Two slots, and a page where a chunk is begun.
    pin: Of the same path.
    claims: Of the same states.
  """
  shared = len(source.pages) - len(lease.pages)
  own = lease.slots[1] if source.own_carry else source.lattice_slot
  return dataclasses.replace(
    source,
    number=number,
    tokens=source.tokens.copy(),
    blocks=list(source.blocks),
    pages=[*source.pages[:shared], *lease.pages],
    running_slot=lease.slots[0],
    own_slot=lease.slots[1],
    lattice_slot=own,
    captures={},
    claims=claims,
    pin=pin,
  )


class Endings:
  """Why sequences ended that nobody released; the last few thousand.

  >>> Endings().why(SequenceHandle(5, 10))
  'was released, or belongs to another cache'
  """

  _MOST = 4096

  def __init__(self) -> None:
    """Knows of none."""
    self._reasons: dict[int, str] = {}

  def note(self, running: Running, why: str) -> None:
    """Keeps the reason for the handles of a sequence."""
    self._reasons[running.number] = why
    while len(self._reasons) > self._MOST:
      del self._reasons[next(iter(self._reasons))]

  def why(self, handle: SequenceHandle) -> str:
    """What became of the sequence of a handle that does not run."""
    if handle.number in self._reasons:
      return f"has ended: {self._reasons[handle.number]}"
    return "was released, or belongs to another cache"
