"""What prompts teach of the candidates on their way: `Learner`.

It owns what is remembered and learned; `adaptive` asks it, and decides.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.worth import flow
from sparse_prefix_jax.placement.worth.cells import UNKNOWN, Kind, cells_of
from sparse_prefix_jax.placement.worth.demand import demand
from sparse_prefix_jax.placement.worth.end_offsets import EndOffsets
from sparse_prefix_jax.placement.worth.forgetting import (
  forget,
  remembered_bytes,
  spare_bytes,
)
from sparse_prefix_jax.placement.worth.hazards import Hazards
from sparse_prefix_jax.placement.worth.start_depth import StartDepth
from sparse_prefix_jax.placement.worth.table import Table
from sparse_prefix_jax.placement.worth.tree import Tree, Way

_REFIT_EVERY, _REFIT_AT, _REFLOW_EVERY = 50, 25, 10
# NumPy compares with numbers in a tenth of the time that an enumeration takes.
_END, _BRANCH = int(Kind.END), int(Kind.BRANCH)
# Who has no state and was not visited for so long is not wanted.
_ASLEEP, _ASLEEP_AT_REFITS = 4_000, 12_000


class Learner:
  """Candidates, hazards and offsets, and what follows from them at a step.

  Attributes:
    table: What is known of every candidate.
    tree: How they hang together.
    offsets: Blocks before the end of a prompt to keep states at.
    start_depth: Blocks after its start to keep one at, None for none.

  >>> learner = Learner(64, lambda depth: 64.0 * depth, 2**20)
  >>> way = learner.tree.walk("abc")
  >>> learner.visit(0, way)
  (0, -1.0)
  """

  def __init__(
    self,
    block: int,
    cost: Callable[[int], float],
    memory_bytes: int,
  ) -> None:
    """Knows nothing yet.

    Args:
      block: Tokens of a block.
      cost: What prefilling that many blocks costs.
      memory_bytes: What may be remembered.
    """
    self.table = Table()
    self.tree = Tree(self.table)
    self.offsets: tuple[int, ...] = ()
    self.start_depth: int | None = None
    self._block, self._cost, self._memory_bytes = block, cost, memory_bytes
    self._hazards = Hazards()
    self._left_at, self._left_after = EndOffsets(), StartDepth()

  def visit(self, step: int, way: Way) -> tuple[int, float]:
    """Counts a visit of all candidates on a way.

    Args:
      step: The number of the prompt.
      way: What `Tree.walk` gave for it.

    Returns:
      How many ends of prompts lay on the way, and the gap of the deepest
      candidate; `UNKNOWN` where that is a branch.
    """
    if way.matched:
      self._left_at.observe(way.length - way.matched)
    if way.matched and way.row_at(way.matched) is None:
      self._left_after.observe(way.matched)
    if not way.rows:
      return 0, UNKNOWN
    table, rows = self.table, np.array(way.rows)
    flow.visit(table, rows)
    ages, cells = step - table.last[rows], table.cell[rows]
    self._hazards.expose(cells, ages)
    self._hazards.happen(cells[-1:], ages[-1:])
    table.expected[rows] += self._hazards.integral(cells, ages)
    table.events[rows[-1]] += 1
    gaps, newest = table.gap[rows], np.log2(ages)
    gaps = np.where(gaps < 0, newest, 0.5 * gaps + 0.5 * newest)
    table.gap[rows] = gaps
    table.passes[rows] += 1
    table.last[rows], table.length[rows] = step, len(way.keys)
    kinds = table.kind[rows]
    self._classify(rows)
    self.want(step, rows)
    gap = UNKNOWN if kinds[-1] == _BRANCH else float(gaps[-1])
    return int(np.count_nonzero(kinds == _END)), gap

  def passed(self, way: Way) -> tuple[int, float]:
    """What `visit` said of the last prompt on a way, which is longer by now.

    Args:
      way: Of `Tree.walk`. What that prompt itself proposed on it was not
        visited yet, and does not count.
    """
    table, rows = self.table, np.array(way.rows, np.int64)
    rows = rows[table.passes[rows] > 0]
    if not rows.size:
      return 0, UNKNOWN
    kinds, last = table.kind[rows], rows[-1]
    gap = UNKNOWN if kinds[-1] == _BRANCH else float(table.gap[last])
    return int(np.count_nonzero(kinds == _END)), gap

  def register(
    self, step: int, way: Way, depth: int, kind: Kind, *, turn: int, gap: float
  ) -> int:
    """Makes a candidate, of which nothing is known but its way.

    Args:
      step: The number of the prompt that proposes it.
      way: Its way, which has no candidate there yet.
      depth: Blocks before it.
      kind: What it is proposed as.
      turn: What `visit` returned.
      gap: What it returned as well; of a branch nothing is known.

    Returns:
      Its row; it takes no part until `admit` is called.
    """
    table, row = self.table, self.tree.add(way, depth)
    table.kind[row], table.turn[row] = kind, turn
    table.gap[row] = UNKNOWN if kind == Kind.BRANCH else gap
    table.last[row], table.cost[row] = step, self._cost(depth)
    table.holder[row] = table.holder[table.parent[row]]
    return row

  def admit(self, step: int, rows: Sequence[int]) -> None:
    """Lets candidates take part that were registered, all of them at once.

    Args:
      step: The one of now.
      rows: In the order in which they were registered.
    """
    new = np.array(rows, np.int64)
    self.table.follow_too(new)
    self._classify(new)
    self.want(step, new)

  def limit_memory(self, memory_bytes: int) -> None:
    """Changes what may be remembered, from the next refit on.

    Args:
      memory_bytes: At most so much, beside the hazards.
    """
    self._memory_bytes = memory_bytes

  @property
  def bytes(self) -> int:
    """What all of it takes."""
    known = remembered_bytes(self.table, self.tree)
    return known + spare_bytes(self.table) + self._hazards.bytes

  def want(self, step: int, rows: Int64[np.ndarray, "n"]) -> None:
    """Brings the demand of some candidates up to date, and the flows by it.

    Args:
      step: The one of now.
      rows: Candidates.
    """
    if rows.size:
      flow.want(self.table, rows, self._demand(rows, step))

  def catch_up(self, step: int) -> None:
    """Does what is not done at every step: refits, and all demand anew.

    Args:
      step: The number of the prompt that comes next.
    """
    if step % _REFIT_EVERY == _REFIT_AT:
      self._refit(step)
    elif step % _REFLOW_EVERY == 0:
      self._reflow(step, _ASLEEP)

  def _classify(self, rows: Int64[np.ndarray, "n"]) -> None:
    """Finds the cells of candidates of which something has changed."""
    table = self.table
    table.cell[rows] = cells_of(
      table.kind[rows],
      table.passes[rows],
      table.length[rows] > table.depth[rows],
      table.turn[rows],
      table.gap[rows],
      table.depth[rows] * self._block,
    )

  def _demand(
    self, rows: Int64[np.ndarray, "n"], step: int
  ) -> Float64[np.ndarray, "n horizons"]:
    """How often candidates will be wanted."""
    table, ages = self.table, step - self.table.last[rows]
    return demand(
      self._hazards,
      table.cell[rows],
      ages,
      table.events[rows],
      table.expected[rows],
    )

  def _refit(self, step: int) -> None:
    """Fits the hazards, the offsets and all flows again."""
    table = self.table
    forget(
      table,
      self.tree,
      self._hazards,
      step=step,
      limit=self._memory_bytes,
    )
    rows = table.rows()
    news = self._hazards.refit(table.cell[rows], step - table.last[rows])
    self._left_at.hear(news)
    self._left_after.hear(news)
    self.offsets = self._left_at.best()
    self.start_depth = self._left_after.best()
    self._reflow(step, _ASLEEP_AT_REFITS)

  def _reflow(self, step: int, asleep: int) -> None:
    """Brings all demand and all flows up to date."""
    table, rows = self.table, self.table.rows()
    awake = table.held[rows] | (step - table.last[rows] <= asleep)
    table.demand[rows[~awake]] = 0
    rows = rows[awake]
    table.demand[rows] = self._demand(rows, step)
    flow.refill(table, rows)
