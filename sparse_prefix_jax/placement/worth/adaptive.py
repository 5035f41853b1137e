"""Which states are worth keeping, for everybody under one budget: `Adaptive`.

The object decides and holds numbers only. Whoever keeps the states drives it:

    visit = policy.observe(keys)        what a prompt finds; learned from
    rows = policy.candidates(visit)     where it might keep states
    policy.hold(rows)                   as if there were room for all of them
    while there is too much:
      policy.release(policy.choose())   the least worth goes, perhaps a new one
    those of `rows` that are held still are to be captured

It is online (a visit is learned from before its prompt is placed, never the
future), has nothing to tune, and what it decides is a function of the calls.
docs/design.md, "Which states are worth keeping", has the mathematics.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparse_prefix_jax.placement.worth import flow
from sparse_prefix_jax.placement.worth.cells import Kind
from sparse_prefix_jax.placement.worth.learning import Learner
from sparse_prefix_jax.placement.worth.leaving import ALIKE, Freed, Leaving
from sparse_prefix_jax.placement.worth.proposals import proposals
from sparse_prefix_jax.placement.worth.table import ROOT
from sparse_prefix_jax.placement.worth.tree import Keys, Way
from sparse_prefix_jax.whole_numbers import check_whole


@dataclass(frozen=True)
class Visit:
  """What a prompt found.

  Attributes:
    step: Its number among all prompts, from 0.
    matched: How many of them an earlier prompt had, m.
    resumed: Depth of the deepest of them with a state, h; 0 for none.
    row: Row of the candidate there; the root's for none.
    turn: Ends of earlier prompts on the way.
    gap: log2 of requests between visits of the deepest candidate on the way.
    way: Where it goes through the tree.
  """

  step: int
  matched: int
  resumed: int
  row: int
  turn: int
  gap: float
  way: Way = field(repr=False)


class Adaptive:
  """One budget of states for everybody: what to offer, and what to evict.

  Attributes:
    held_count: How many states are held.

  >>> policy = Adaptive(block=64)
  >>> for prompt in ("abcd", "abef", "abcd"):
  ...   visit = policy.observe(prompt)
  ...   policy.hold(policy.candidates(visit))
  ...   while policy.held_count > 2:
  ...     policy.release(policy.choose())
  >>> visit.matched, visit.resumed
  (4, 4)
  """

  def __init__(
    self,
    *,
    block: int,
    cost: Callable[[int], float] | None = None,
    memory_bytes: int = 64 * 2**20,
  ) -> None:
    """Knows nothing yet.

    Args:
      block: Tokens of a block, B.
      cost: What prefilling that many blocks costs, F, never decreasing; None
        counts tokens.
      memory_bytes: What may be remembered of candidates and keys; looked at
        every fiftieth prompt. The candidates without a state that were visited
        longest ago are forgotten first; a held one never is.

    Raises:
      ValueError: If either number is no integer, or below 1.
    """
    self.held_count, self._block = 0, check_whole("block", block)
    if min(self._block, check_whole("memory_bytes", memory_bytes)) < 1:
      given = f"at least 1, got {block} and {memory_bytes}"
      raise ValueError(f"block and memory_bytes must be {given}")
    tokens = cost or (lambda depth: float(depth * block))
    self._learner = Learner(block, tokens, memory_bytes)
    self._table, self._tree = self._learner.table, self._learner.tree
    self._leaving: Leaving | None = None
    self._step = self._caught_up = 0

  def observe(self, keys: Keys) -> Visit:
    """Learns from a prompt how often prefixes are asked for again.

    Args:
      keys: One per whole block that the prompt may resume after, equal where
        the blocks are; a server leaves out a block that ends the prompt.

    Returns:
      What it found, for `candidates`.
    """
    self.catch_up()
    step, way = self._step, self._tree.walk(keys)
    self._step += 1
    turn, gap = self._learner.visit(step, way)
    row = next((r for r in reversed(way.rows) if self._table.held[r]), ROOT)
    return Visit(
      step=step,
      matched=way.matched,
      resumed=int(self._table.depth[row]),
      row=row,
      turn=turn,
      gap=gap,
      way=way,
    )

  def catch_up(self) -> None:
    """Learns what is learned seldom, if it is due before the next prompt.

    Every tenth prompt all demand is computed anew, every fiftieth the hazards
    are fitted. Whoever has time between two prompts calls this then: `observe`
    has nothing left to do. The number of the prompt decides, never a clock.
    """
    self._settle()
    if self._caught_up <= self._step:
      self._caught_up = self._step + 1
      self._learner.catch_up(self._step)

  def candidates(
    self,
    visit: Visit,
    *,
    anchors: Collection[int] = (),
    roomy: bool = False,
  ) -> tuple[int, ...]:
    """Registers the candidates of a prompt, and names those to hold.

    Prompts that are served together are all observed first, and then offer in
    the same order; one then knows what those before it have in common with it.

    Args:
      visit: What `observe` returned, for every prompt once.
      anchors: Depths in blocks that the prompt names, or its tokens.
      roomy: Whether fewer states are held than there is room for, where states
        are all that is counted.

    Returns:
      Rows without a state, all deeper than where the prompt resumes, the
      shallow ones first.

    Raises:
      ValueError: If an anchor does not lie within the prompt.
    """
    self._settle()
    way, table = visit.way, self._table
    for depth in anchors:
      if not 0 < depth <= len(way.keys):
        raise ValueError(
          f"anchors must be from 1 to {len(way.keys)} blocks, got {depth}"
        )
    if way.changes != self._tree.changes:
      way = self._tree.walk(way.keys)
    proposed = proposals(
      len(way.keys),
      matched=way.matched,
      offsets=self._learner.offsets,
      start_depth=self._learner.start_depth,
      anchors=anchors,
      roomy=roomy,
    )
    known, offered = set(way.rows), set()
    for depth, kind in proposed:
      row = way.row_at(depth)
      if row is None:
        if depth <= visit.resumed and kind > Kind.BRANCH:
          continue
        row = self._learner.register(
          visit.step, way, depth, kind, turn=visit.turn, gap=visit.gap
        )
      offered.add(row)
    self._tree.finish(way)
    fresh = [row for row in way.rows if row not in known]
    self._learner.admit(self._step - 1, fresh)
    return tuple(
      row
      for row, depth in zip(way.rows, way.depths)
      if depth > visit.resumed
      and not table.held[row]
      and (row in offered or depth <= way.matched)
    )

  def extend(self, keys: Keys) -> int:
    """Registers the end of a path at which a state is in hand.

    A prompt that was decoded goes further than it did when it was observed. It
    is learned as if it had gone so far, but nothing counts as asked for again.

    Args:
      keys: One per whole block of it, at least one.

    Returns:
      The row of its end, for `hold`.

    Raises:
      ValueError: If there is no key.

    >>> policy = Adaptive(block=64)
    >>> _ = policy.candidates(policy.observe("ab"))
    >>> policy.depth_of(policy.extend("abcd"))
    4
    """
    self._settle()
    way, step = self._tree.walk(keys), self._step - 1
    length = len(way.keys)
    if not length:
      raise ValueError("keys must name at least one block")
    turn, gap = self._learner.passed(way)
    known = {*way.rows}
    proposed = {way.matched: Kind.BRANCH, length: Kind.END}
    for depth in sorted({*proposed} - {0, *way.depths}):
      self._learner.register(
        step, way, depth, proposed[depth], turn=turn, gap=gap
      )
    (self._tree.settle if way.matched == length else self._tree.finish)(way)
    fresh = [row for row in way.rows if row not in known]
    self._learner.admit(step, fresh)
    return way.rows[-1]

  def row_of(self, keys: Keys) -> int | None:
    """Returns the candidate at the end of a path, None where there is none.

    Args:
      keys: One per whole block before it.
    """
    way = self._tree.walk(keys)
    return way.row_at(len(way.keys)) if way.matched == len(way.keys) else None

  def hold(self, rows: Sequence[int]) -> None:
    """Counts states as held, before they are captured.

    Args:
      rows: Candidates without a state, each once.

    Raises:
      ValueError: If one has a state, is no candidate, or comes twice.
    """
    self._settle()
    for row in rows:
      if not self._is_candidate(row) or self._table.held[row]:
        raise ValueError(f"row {row} is no candidate without a state")
    if len({*rows}) < len(rows):
      raise ValueError(f"rows must differ from each other, got {list(rows)}")
    if rows:
      flow.hold(self._table, rows)
      self.held_count += len(rows)

  def choose(
    self, *, pinned: Collection[int] = (), freed: Freed = ALIKE
  ) -> int:
    """Names the held state that is worth least per unit that it takes.

    Args:
      pinned: Rows that must stay.
      freed: What a state and the blocks that only it needs count.

    Returns:
      Its row; of equals the one whose block was seen first.

    Raises:
      ValueError: If there is none that may go.
    """
    self._settle()
    row = Leaving(self._table, pinned=pinned, freed=freed).least()
    if row is None:
      stay = f"{self.held_count} are held and {len(pinned)} rows pinned"
      raise ValueError(f"no state may be evicted: {stay}")
    return row

  def weigh(
    self, *, pinned: Collection[int] = (), freed: Freed = ALIKE
  ) -> Leaving:
    """Weighs all held states once, to `release` several in turn.

    Args:
      pinned: Rows that must stay.
      freed: As of `choose`.

    Returns:
      What names them: its `least` is what `choose` would name each time. It
      ends with any change but a release.

    >>> policy = Adaptive(block=64)
    >>> policy.hold(policy.candidates(policy.observe("ab")))
    >>> weighed = policy.weigh()
    >>> while (row := weighed.least()) is not None:
    ...   policy.release(row)
    >>> policy.held_count, policy.weighs(weighed)
    (0, True)
    """
    self._settle()
    self._leaving = Leaving(self._table, pinned=pinned, freed=freed)
    return self._leaving

  def weighs(self, weighed: Leaving) -> bool:
    """Returns whether nothing but states released has changed since.

    Args:
      weighed: As `weigh` returned it.
    """
    return weighed is self._leaving

  def _settle(self) -> None:
    """What weighs states ends, before anything else reads or changes them."""
    leaving, self._leaving = self._leaving, None
    if leaving is not None:
      leaving.finish()

  def release(self, row: int) -> None:
    """Counts a state as held no more.

    Args:
      row: A held candidate, which is remembered nevertheless.

    Raises:
      ValueError: If no state is held there.
    """
    if not self._is_candidate(row) or not self._table.held[row]:
      raise ValueError(f"row {row} holds no state")
    if self._leaving is None:
      flow.release(self._table, row)
    else:
      self._leaving.release(row)
    self.held_count -= 1

  @property
  def remembered_bytes(self) -> int:
    """Bytes of host memory that all of it takes.

    Beside what `memory_bytes` bounds these are 14.0 MiB of hazards, and rows
    for up to a quarter more candidates.
    """
    return self._learner.bytes

  def expected_lost(self) -> float:
    """Says how many tokens of what is known the next prompt computes again.

    The mean under the demand for one request, with the states held now.
    """
    self._settle()
    return self._block * flow.lost_blocks(self._table)

  def limit_memory(self, memory_bytes: int) -> None:
    """Changes what may be remembered; it is kept from the next refit on.

    Args:
      memory_bytes: As of the constructor.

    Raises:
      ValueError: If that is nothing.
    """
    if memory_bytes < 1:
      raise ValueError(f"memory_bytes must be at least 1, got {memory_bytes}")
    self._learner.limit_memory(memory_bytes)

  @property
  def held_rows(self) -> tuple[int, ...]:
    """Rows of all held candidates, the one worth least first."""
    self._settle()
    rows = np.flatnonzero(self._table.held[: self._table.size])
    worth = flow.worths(self._table, rows)
    return tuple(rows[np.lexsort((self._table.number[rows], worth))].tolist())

  def is_held(self, row: int) -> bool:
    """Returns whether a state is held there.

    Args:
      row: A candidate.
    """
    return bool(self._table.held[row])

  def depth_of(self, row: int) -> int:
    """Returns how many blocks lie before a candidate.

    Args:
      row: Its row.
    """
    return int(self._table.depth[row])

  def _is_candidate(self, row: int) -> bool:
    """Whether a row is one of a candidate that is remembered."""
    return 0 < row < self._table.size and bool(self._table.kind[row])
