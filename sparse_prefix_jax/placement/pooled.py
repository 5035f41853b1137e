"""All entries placed alike, by one histogram of overlaps: `Pooled`."""

from functools import partial

import numpy as np
from jaxtyping import Float64

from sparse_prefix_jax.placement.background import PlanWork
from sparse_prefix_jax.placement.cues import Prompt
from sparse_prefix_jax.placement.dynamic_program import solve_placement
from sparse_prefix_jax.placement.features import Features
from sparse_prefix_jax.placement.overlap import OverlapHistogram, observe
from sparse_prefix_jax.placement.paper_rule import solve_paper_rule


class Pooled:
  """A histogram of absolute depths, and the best positions under it.

  Attributes:
    histogram: Decayed counts of overlap depths in chunks, on the host.

  >>> pooled = Pooled("optimal", budget=1, chunk=64, depths=16)
  >>> pooled.depths(Features(length=640)) is None  # there is no plan yet
  True
  >>> pooled.observe(200)
  >>> pooled.adopt(pooled.planning()())
  >>> pooled.depths(Features(length=640))
  [3]
  """

  def __init__(
    self,
    name: str,
    *,
    budget: int,
    chunk: int,
    depths: int,
    decay: float = 0.99,
    cost: np.ndarray | None = None,
  ) -> None:
    """Starts without statistics.

    Args:
      name: "optimal", or "dp" for the paper's rule.
      budget: States per entry, >= 0.
      chunk: Tokens per depth bin.
      depths: Number of depth bins N, at least 2; what lies deeper counts in
        the last.
      decay: What an observation leaves of the counts.
      cost: [N] Cumulative cost F of prefilling to each depth, as
        `solve_placement` takes it; None for the linear one. The paper's rule
        knows no other.

    Raises:
      ValueError: If there are fewer than two depths.
    """
    self.histogram = OverlapHistogram.create(depths, on_host=True)
    self._exact, self._chunk, self._decay = name == "optimal", chunk, decay
    # More states than depths are of no use, and would take memory.
    self._budget, self._cost = min(budget, depths - 1), cost
    self._plan: list[int] | None = None

  @property
  def observations(self) -> int:
    """How many overlaps were observed."""
    return int(self.histogram.observations)

  def observe(
    self,
    overlap: int,
    *,
    entry: Features | None = None,
    matched: Features | None = None,
    prompt: Prompt | None = None,
  ) -> None:
    """Counts one overlap.

    Args:
      overlap: Leading tokens that equal a stored prefix, >= 0.
      entry: Not used; `Conditional` is called the same way.
      matched: Not used either.
      prompt: Nor this.
    """
    depth = overlap // self._chunk
    self.histogram = observe(self.histogram, depth, self._decay)

  def planning(self) -> PlanWork[list[int]]:
    """Returns what computes a plan of the present statistics.

    It may be called at any time and in any thread: it holds all that it needs.
    `adopt` puts the plan into effect.
    """
    counts = np.asarray(self.histogram.counts)
    if not self._exact:
      return partial(solve_paper_rule, counts, self._budget)
    return partial(_best_depths, counts, self._budget, self._cost)

  def adopt(self, plan: list[int]) -> None:
    """Puts a plan into effect.

    Args:
      plan: Depths in chunks, in ascending order.
    """
    self._plan = plan

  def depths(self, features: Features) -> list[int] | None:
    """Says where an entry should keep states, in chunks, in ascending order.

    Args:
      features: What is known of the entry, of which only its length counts.

    Returns:
      The depths, None before the first plan.
    """
    if self._plan is None:
      return None
    return [d for d in self._plan if d * self._chunk <= features.length]

  def survival(self, features: Features) -> Float64[np.ndarray, "n"]:
    """Counts the overlaps that reach each depth of an entry, from the first.

    Args:
      features: What is known of the entry, of which only its length counts:
        no overlap with it is longer.

    Returns:
      [n] Counts at the depths 1 to its last whole chunk.

    >>> pooled = Pooled("optimal", budget=1, chunk=64, depths=16)
    >>> pooled.observe(130)
    >>> pooled.survival(Features(length=200)).tolist()
    [1.0, 1.0, 0.0]
    """
    within = self.histogram.counts[1 : features.length // self._chunk + 1]
    return np.asarray(within, np.float64)[::-1].cumsum()[::-1]

  def compile(self) -> None:
    """Compiles the solver, so that no plan has to."""
    if self._exact:
      counts = np.zeros(self.histogram.counts.shape, np.float64)
      counts[0] = 1.0
      _best_depths(counts, self._budget, self._cost)


def _best_depths(
  counts: Float64[np.ndarray, "N"], budget: int, cost: np.ndarray | None
) -> list[int]:
  """The exact solution, as a list."""
  placed = np.asarray(solve_placement(counts, budget, cost).positions)
  return placed[placed > 0].tolist()
