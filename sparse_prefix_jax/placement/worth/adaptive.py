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

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.worth import flow
from sparse_prefix_jax.placement.worth.cells import UNKNOWN, Kind, cells_of
from sparse_prefix_jax.placement.worth.demand import demand
from sparse_prefix_jax.placement.worth.end_offsets import EndOffsets
from sparse_prefix_jax.placement.worth.forgetting import (
  forget,
  remembered_bytes,
)
from sparse_prefix_jax.placement.worth.hazards import Hazards
from sparse_prefix_jax.placement.worth.proposals import proposals
from sparse_prefix_jax.placement.worth.table import ROOT, Table
from sparse_prefix_jax.placement.worth.tree import Tree, Way

_REFIT_EVERY, _REFIT_AT, _REFLOW_EVERY = 50, 25, 10
# Who has no state and was not visited for so long is not wanted.
_ASLEEP, _ASLEEP_AT_REFITS = 4_000, 12_000


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
      memory_bytes: What may be remembered. The candidates without a state that
        were visited longest ago are forgotten first; a held one never is.

    Raises:
      ValueError: If there is less than one token to a block, or no memory.
    """
    if block < 1 or memory_bytes < 1:
      raise ValueError(
        "block and memory_bytes must be at least 1, got"
        f" {block} and {memory_bytes}"
      )
    self.held_count = 0
    self._block = block
    self._cost = cost or (lambda depth: float(depth * block))
    self._memory_bytes = memory_bytes
    self._table = Table()
    self._tree = Tree(self._table)
    self._hazards = Hazards()
    self._offsets = EndOffsets()
    self._best_offsets: tuple[int, ...] = ()
    self._step = 0

  def observe(self, keys: Sequence[Hashable]) -> Visit:
    """Learns from a prompt how often prefixes are asked for again.

    Args:
      keys: One per whole block that the prompt may resume after, equal where
        the blocks are.

    Returns:
      What it found, for `candidates`.
    """
    step, way = self._step, self._tree.walk(keys)
    self._step += 1
    turn, gap = self._pass(step, way)
    if way.matched:
      self._offsets.observe(way.length - way.matched)
    if step % _REFIT_EVERY == _REFIT_AT:
      self._refit(step)
    elif step % _REFLOW_EVERY == 0:
      self._reflow(step, _ASLEEP)
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
      anchors: Depths in blocks that the prompt names itself.
      roomy: Whether fewer states are held than there is room for, where states
        are all that is counted.

    Returns:
      Rows without a state, all deeper than where the prompt resumes, the
      shallow ones first.
    """
    way, table = visit.way, self._table
    if way.changes != self._tree.changes:
      way = self._tree.walk(way.keys)
    proposed = proposals(
      len(way.keys),
      matched=way.matched,
      offsets=self._best_offsets,
      anchors=anchors,
      roomy=roomy,
    )
    known, offered = set(way.rows), set()
    for depth, kind in proposed:
      row = way.row_at(depth)
      if row is None:
        if depth <= visit.resumed and kind > Kind.BRANCH:
          continue
        row = self._register(visit, way, depth, kind)
      offered.add(row)
    self._tree.finish(way)
    fresh = [row for row in way.rows if row not in known]
    self._want(np.array(fresh, np.int64), self._step - 1)
    return tuple(
      row
      for row, depth in zip(way.rows, way.depths)
      if depth > visit.resumed
      and not table.held[row]
      and (row in offered or depth <= way.matched)
    )

  def hold(self, rows: Sequence[int]) -> None:
    """Counts states as held, before they are captured.

    Args:
      rows: Candidates without a state.
    """
    if rows:
      flow.hold(self._table, rows)
      self.held_count += len(rows)

  def choose(
    self,
    *,
    pinned: Collection[int] = (),
    freed: Callable[[Int64[np.ndarray, "n"]], Float64[np.ndarray, "n"]]
    | None = None,
  ) -> int:
    """Names the held state that is worth least per unit that it takes.

    Args:
      pinned: Rows that must stay.
      freed: What evicting each of some held rows would free, positive; None
        where every state frees the same.

    Returns:
      Its row; of equals the one whose block was seen first.

    Raises:
      ValueError: If there is none that may go.
    """
    rows = np.flatnonzero(self._table.held[: self._table.size])
    if pinned:
      rows = rows[~np.isin(rows, list(pinned))]
    if not rows.size:
      raise ValueError(
        f"no state may be evicted: {self.held_count} are held and"
        f" {len(pinned)} rows pinned"
      )
    worth = flow.worths(self._table, rows)
    if freed is not None:
      worth = worth / freed(rows)
    least = rows[worth == worth.min()]
    return int(least[self._table.number[least].argmin()])

  def release(self, row: int) -> None:
    """Counts a state as held no more.

    Args:
      row: A held candidate, which is remembered nevertheless.
    """
    flow.release(self._table, row)
    self.held_count -= 1

  @property
  def remembered_bytes(self) -> int:
    """Bytes of what is remembered; the keys of blocks are the caller's."""
    return remembered_bytes(self._table, self._tree)

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

  def _pass(self, step: int, way: Way) -> tuple[int, float]:
    """Counts a visit of all candidates on the way; returns turn and gap."""
    if not way.rows:
      return 0, UNKNOWN
    table, rows = self._table, np.array(way.rows)
    ages, cells = step - table.last[rows], table.cell[rows]
    self._hazards.expose(cells, ages)
    self._hazards.happen(cells[-1:], ages[-1:])
    table.expected[rows] += self._hazards.integral(cells, ages)
    table.events[rows[-1]] += 1
    gaps, newest = table.gap[rows], np.log2(ages)
    gaps = np.where(gaps < 0, newest, 0.5 * gaps + 0.5 * newest)
    table.gap[rows] = gaps
    table.passes[rows] += 1
    table.last[rows] = step
    kinds = table.kind[rows]
    self._classify(rows)
    self._want(rows, step)
    gap = UNKNOWN if kinds[-1] == Kind.BRANCH else float(gaps[-1])
    return int((kinds == Kind.END).sum()), gap

  def _register(self, visit: Visit, way: Way, depth: int, kind: Kind) -> int:
    """Makes a candidate of a prompt."""
    table, row = self._table, self._tree.add(way, depth)
    table.kind[row], table.turn[row] = kind, visit.turn
    table.gap[row] = UNKNOWN if kind == Kind.BRANCH else visit.gap
    table.last[row], table.cost[row] = visit.step, self._cost(depth)
    table.holder[row] = table.holder[table.parent[row]]
    self._classify(np.array([row]))
    return row

  def _classify(self, rows: Int64[np.ndarray, "n"]) -> None:
    """Finds the cells of candidates of which something has changed."""
    table = self._table
    table.cell[rows] = cells_of(
      table.kind[rows],
      table.passes[rows],
      table.turn[rows],
      table.gap[rows],
      table.depth[rows] * self._block,
    )

  def _demand(
    self, rows: Int64[np.ndarray, "n"], step: int
  ) -> Float64[np.ndarray, "n horizons"]:
    """How often candidates will be wanted."""
    table = self._table
    return demand(
      self._hazards,
      table.cell[rows],
      step - table.last[rows],
      table.events[rows],
      table.expected[rows],
    )

  def _want(self, rows: Int64[np.ndarray, "n"], step: int) -> None:
    """Brings the demand of candidates up to date, and the flows by it."""
    if rows.size:
      flow.want(self._table, rows, self._demand(rows, step))

  def _refit(self, step: int) -> None:
    """Fits the hazards, the offsets and all flows again."""
    table = self._table
    forget(
      table, self._tree, self._hazards, step=step, limit=self._memory_bytes
    )
    rows = table.rows()
    self._hazards.refit(table.cell[rows], step - table.last[rows])
    self._best_offsets = self._offsets.best()
    self._reflow(step, _ASLEEP_AT_REFITS)

  def _reflow(self, step: int, asleep: int) -> None:
    """Brings all demand and all flows up to date."""
    table, rows = self._table, self._table.rows()
    awake = table.held[rows] | (step - table.last[rows] <= asleep)
    table.demand[rows[~awake]] = 0
    rows = rows[awake]
    table.demand[rows] = self._demand(rows, step)
    flow.refill(table)
