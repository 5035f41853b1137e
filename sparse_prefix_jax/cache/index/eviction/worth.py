"""The state that is worth least goes first: rule `index` of `adaptive`.

What states are worth is known to a policy that knows no state
(`placement/worth`); this rule ties its rows to states. A row that the policy
counts as held is one of

    stored    a state of the tree, which may be evicted unless a pin holds it
    awaited   a running sequence has a slot for it, and will capture it
    offered   a prompt that is to be placed might capture it: it is weighed
              against the states that are stored, and may be turned down

so a new state enters only where it is worth more than what has to leave for it.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sparse_prefix_jax.placement.worth import (
  ALIKE,
  Adaptive,
  Freed,
  Leaving,
  Visit,
  hashes,
)

from ..results import Match, Shortage
from ..tree import Node, State


class _Offer(NamedTuple):
  """Which sequence could capture a state, and whether another waits for it."""

  owner: int
  wanted: bool


class _Weighing(NamedTuple):
  """What states were weighed for: as long as that holds, they stay weighed."""

  leaving: Leaving
  short: Shortage
  stay: set[int]
  kept: list[State]


def keys_of(
  blocks: Sequence[Hashable], salt: bytes, known: Sequence[int] = ()
) -> Int64[np.ndarray, "n"]:
  """Keys of blocks as a policy remembers them: hashes, and apart by tenants.

  They are Python's, 64 bits, keyed anew in every process where blocks are ids.
  They are compared to learn from, never to resume by; and of a block that is
  stored the hash is known already.

  Args:
    blocks: Keys of whole blocks from the start.
    salt: The tenant.
    known: The hashes of leading ones, as far as somebody has them.

  >>> ours, theirs = keys_of([1, 2], b"ours"), keys_of([1, 2], b"theirs")
  >>> (ours == theirs).tolist()
  [False, True]
  """
  leading = np.array(known[: len(blocks)], np.int64)
  keys = np.concatenate([leading, hashes(blocks[leading.size :])])
  if blocks:
    keys[0] = hash((salt, blocks[0]))
  return keys


def _keys_to(node: Node) -> Int64[np.ndarray, "n"]:
  """The keys of the path to a node."""
  path = [node]
  while (above := path[-1].parent) is not None:
    path.append(above)
  salt = path.pop().key
  blocks = [node.key for node in reversed(path)]
  return keys_of(blocks, salt if isinstance(salt, bytes) else b"")


class Worth:
  """States in the order of what they are worth, and offers of new ones.

  Args:
    policy: What says how much; a new one where nobody observes anything.
  """

  def __init__(self, policy: Adaptive | None = None) -> None:
    """Starts without states."""
    self._policy = policy or Adaptive(block=1)
    self._rows: dict[State, int] = {}
    self._stored: dict[int, State] = {}
    self._awaited: dict[int, int] = {}
    self._offers: dict[int, _Offer] = {}
    self._turned_down: list[tuple[int, _Offer]] = []
    self._weighing: _Weighing | None = None

  @property
  def offered(self) -> int:
    """States that are offered; each needs a slot unless it is turned down."""
    return len(self._offers)

  def proposes(self, match: Match, blocks: int) -> Collection[int]:
    """Nothing: what a prompt might keep is offered."""
    return ()

  def add(self, state: State) -> None:
    """Takes in a state; one that nobody offered is registered now."""
    keys = _keys_to(state.node)
    row = self._policy.row_of(keys)
    row = self._policy.extend(keys) if row is None else row
    if not self._policy.is_held(row):
      self._policy.hold([row])
    self._awaited.pop(row, None)
    self._rows[state], self._stored[row] = row, state

  def hit(self, state: State) -> None:
    """Changes nothing: prompts are observed before they resume."""

  def demote(self, state: State) -> None:
    """Changes nothing: a state under a longer turn is weighed as any other."""

  def remove(self, state: State) -> None:
    """Forgets the state, not its prefix; KeyError if it is not stored."""
    row = self._rows[state]
    self._policy.release(row)
    del self._rows[state], self._stored[row]

  def victim(self, short: Shortage) -> State | None:
    """The state worth least for what it frees, that no pin holds.

    Args:
      short: What is missing.

    Returns:
      The state; None where one that is only offered is worth less: it is turned
      down. One that another request waits for is turned down last.

    Raises:
      StopIteration: Pins hold all of them, and nothing is offered.
    """
    wanted = {row for row, offer in self._offers.items() if offer.wanted}
    gone, row = self._turn_down(short, {*self._awaited, *wanted})
    if row is None and not gone:
      gone, row = self._turn_down(short, {*self._awaited})
    if row is not None and not gone:
      return self._stored[row]
    if not gone:
      raise StopIteration
    return None

  def _turn_down(
    self, short: Shortage, stay: set[int]
  ) -> tuple[list[int], int | None]:
    """Turns offers down that are worth less than all that is stored.

    Few states are pinned, and seldom are they the ones worth least: they are
    found when they would be chosen.

    Returns:
      Offers turned down, in order, and the row that is worth least then; None
      where all others stay, or as many went as there are slots short.
    """
    weighing = self._weighing = self._weigh(short, stay)
    gone: list[int] = []
    while len(gone) < short.slots:
      row = weighing.leaving.least()
      if row in self._offers:
        self._policy.release(row)
        self._turned_down.append((row, self._offers.pop(row)))
        gone.append(row)
      elif row is None or not self._stored[row].pins:
        return gone, row
      else:
        weighing.leaving.keep(row)
        weighing.kept.append(self._stored[row])
    return gone, None

  def _weigh(self, short: Shortage, stay: set[int]) -> _Weighing:
    """All that is held, weighed once for all that goes for the same room."""
    asked, last = short._replace(slots=0), self._weighing
    if (
      last
      and (last.short, last.stay) == (asked, stay)
      and self._policy.weighs(last.leaving)
      and all(state.pins for state in last.kept)
    ):
      return last
    # Where pages alone are short, a state that frees none stays, and one that
    # frees few is not spared for that: its slot is free then as well.
    freed = Freed(short.slot, short.page, short.beside)
    freed = ALIKE if short.slot and not short.page else freed
    leaving = self._policy.weigh(pinned=stay, freed=freed)
    return _Weighing(leaving, asked, stay, [])

  def reconsider(self, fits: Callable[[int], bool]) -> None:
    """Offers again what was turned down for room that there is after all.

    What is worth least goes first, and is small perhaps: what went after it may
    have freed more than was missing. So of what was turned down since the last
    call the most worthwhile comes back first, while nothing has to go for it.

    Args:
      fits: Whether there is room for so many offers.
    """
    self._weighing = None  # It views columns that may grow, and names states.
    back: dict[int, _Offer] = {}
    while self._turned_down and fits(self.offered + len(back) + 1):
      back.update([self._turned_down.pop()])
    self._turned_down.clear()
    self._policy.hold(sorted(back, key=self._policy.depth_of))
    self._offers |= back

  def observe(
    self,
    blocks: Sequence[Hashable],
    salt: bytes,
    known: Sequence[int] = (),
  ) -> Visit:
    """Learns from a prompt; once, before it is placed.

    Args:
      blocks: Those after which it may resume.
      salt: The tenant.
      known: Hashes of leading blocks, where somebody has them.
    """
    return self._policy.observe(keys_of(blocks, salt, known))

  def catch_up(self) -> None:
    """Learns now what the next prompt would have to wait for."""
    self._policy.catch_up()

  def offer(
    self,
    visit: Visit,
    owner: int,
    *,
    anchors: Collection[int] = (),
    wanted: Collection[int] = (),
    proposes: bool = True,
  ) -> tuple[int, ...]:
    """Offers what a prompt might keep, as if there were room for all of it.

    Args:
      visit: What `observe` said.
      owner: Number of the sequence that would capture it.
      anchors: Depths in blocks that the prompt or its tokens name, all within
        it.
      wanted: Depths that somebody waits for.
      proposes: Whether other depths come into question as well.

    Returns:
      The depths in blocks that are offered.
    """
    named, policy = {*anchors, *wanted}, self._policy
    rows = [*policy.candidates(visit, anchors=named)]
    if not proposes:
      rows = [row for row in rows if policy.depth_of(row) in named]
    policy.hold(rows)
    depths = tuple(map(policy.depth_of, rows))
    for row, depth in zip(rows, depths):
      self._offers[row] = _Offer(owner, depth in wanted)
    return depths

  def accept(self, owner: int) -> tuple[int, ...]:
    """What a sequence offered, and was not turned down, is awaited from now on.

    Args:
      owner: Number of the sequence.

    Returns:
      Depths in blocks, ascending; each needs a slot.
    """
    mine = [row for row, offer in self._offers.items() if offer.owner == owner]
    for row in mine:
      del self._offers[row]
      self._awaited[row] = owner
    return tuple(sorted(map(self._policy.depth_of, mine)))

  def cancel(self, owner: int) -> None:
    """What a sequence offered, or was to capture, does not come any more.

    Args:
      owner: Number of the sequence.
    """
    self.accept(owner)
    self._turned_down = [x for x in self._turned_down if x[1].owner != owner]
    for row in [row for row, by in self._awaited.items() if by == owner]:
      self._policy.release(row)
      del self._awaited[row]

  @property
  def awaited(self) -> tuple[tuple[int, int], ...]:
    """Who is to capture states, and at which depth in blocks."""
    depth_of = self._policy.depth_of
    return tuple((by, depth_of(row)) for row, by in self._awaited.items())

  def check(self) -> None:
    """Compares the rows of states with what the policy holds; for tests.

    Raises:
      AssertionError: If they differ.
    """
    rows = [*self._stored, *self._awaited, *self._offers]
    alike = sorted(rows) == sorted(self._policy.held_rows)
    assert alike, "worth: the policy holds other rows than there are states."
    for state, row in self._rows.items():
      found = self._policy.row_of(_keys_to(state.node))
      assert found == row, f"worth: a state of row {row} belongs to {found}."
      assert self._stored[row] is state, f"worth: row {row} has another state."

  def __iter__(self) -> Iterator[State]:
    """All states, the one worth least first, whatever it frees."""
    rows = self._policy.held_rows
    return iter([self._stored[row] for row in rows if row in self._stored])

  def __len__(self) -> int:
    """How many states there are."""
    return len(self._rows)

  def __contains__(self, state: object) -> bool:
    """Whether the state is stored."""
    return state in self._rows
