"""From a policy's name to positions on the lattice, for a host that serves.

A `Planner` sees the overlap of every request and says where the request's own
entry should keep states. The simulator and the prefix cache both use it.
"""

import math
import numbers
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_prefix_jax.placement.conditional import Conditional, Features
from sparse_prefix_jax.placement.dynamic_program import solve_placement
from sparse_prefix_jax.placement.heuristics import NEEDS_STEP, spaced
from sparse_prefix_jax.placement.paper_rule import solve_paper_rule

CHUNK = 64
"""Tokens between lattice positions, unless configured."""

POLICIES = {
  "no_cache": None,
  "last": None,
  "block": "tokens between states",
  "balanced": "states per entry",
  "sqrt": None,
  "dyadic": "smallest position in tokens",
  "dp": "states per entry",
  "optimal": "states per entry",
  "conditional": "states per entry on average, also a fraction",
}
"""Names of placement policies, and what their budget means (None: they have
no budget)."""

LEARNED = ("dp", "optimal")
"""Policies that place all entries alike, by one histogram of the overlaps seen
so far; `conditional` learns too, but places each entry by what is known of
it."""

REPLANNING = ("frozen", "periodic", "decaying")
"""How often learned policies solve again, and whether old counts fade."""


def _check_whole(**values: Any) -> None:
  """Raises ValueError for what is no integer; None is left out."""
  for name, value in values.items():
    try:
      operator.index(0 if value is None else value)
    except TypeError:
      raise ValueError(f"{name} must be an integer, got {value!r}") from None


def _check_fraction(budget: int | float | None) -> None:
  """Raises ValueError for what is no finite number; None is left out."""
  number = 0 if budget is None else budget
  real = isinstance(number, numbers.Real) and not isinstance(number, bool)
  # An int compares with a float of any size; converting it could overflow.
  if not real or not -math.inf < number < math.inf:
    raise ValueError(f"budget must be a finite number, got {budget!r}")


def _check_budget(name: str, budget: int | float | None) -> None:
  """Raises ValueError where a budget is missing, superfluous or too small."""
  meaning = POLICIES[name]
  if meaning is None:
    if budget is not None:
      raise ValueError(f"placement {name} takes no budget, got {budget}")
    return
  if budget is None:
    raise ValueError(f"placement {name} needs a budget: {meaning}")
  least = 1 if name in NEEDS_STEP else 0
  if budget < least:
    raise ValueError(
      f"budget of {name} ({meaning}) must be at least {least}, got {budget}"
    )


@dataclass(frozen=True)
class PlacementPolicy:
  """Where entries keep states, by name (hashable configuration).

  Attributes:
    name: a key of `POLICIES`.
    budget: what `POLICIES` says for the name; None for names without one. Only
      `conditional` takes a fraction: its budget is spent over many entries,
      the others' within each.
    chunk: tokens between lattice positions c.
    replan: for the learned ones: "frozen" solves once, "periodic" again
      every `every` observations, "decaying" also lets old counts fade.
    every: observations between plans ("frozen": before the only one, where
      there is no warm-up).
    decay: what an observation leaves of earlier counts ("decaying" only). The
      defaults are the paper's.

  Raises:
    ValueError: unknown names, or numbers out of range.

  >>> PlacementPolicy("balanced", budget=3).chunk
  64
  """

  name: str
  budget: int | float | None = None
  chunk: int = CHUNK
  replan: str = "decaying"
  every: int = 10
  decay: float = 0.99

  def __post_init__(self) -> None:
    """Checks every field."""
    if self.name not in POLICIES:
      raise ValueError(
        f"placement must be one of {', '.join(POLICIES)}, got {self.name!r}"
      )
    _check_whole(chunk=self.chunk, every=self.every)
    if self.name == "conditional":
      _check_fraction(self.budget)
    else:
      _check_whole(budget=self.budget)
    _check_budget(self.name, self.budget)
    if self.replan not in REPLANNING:
      raise ValueError(
        f"replan must be one of {', '.join(REPLANNING)}, got {self.replan!r}"
      )
    if self.chunk < 1 or self.every < 1:
      raise ValueError(
        f"chunk and every must be at least 1, got {self.chunk} and {self.every}"
      )
    if not 0 < self.decay <= 1:
      raise ValueError(f"decay must be in (0, 1], got {self.decay}")


class Planner:
  """Statistics of overlaps, and the plan that was last made from them.

  Before there is a plan (nothing observed, or still warming up) the learned
  policies place like `balanced` with the same budget. `conditional` also plans
  while it warms up: its budget is an average that holds from the start.

  Attributes:
    policy: what it plans by.
    counts: float64 [N], decayed overlap counts; index = overlap // chunk.
    observations: how many overlaps were observed, misses included.

  >>> planner = Planner(PlacementPolicy("optimal", budget=1), depths=16)
  >>> planner.positions(640)
  (320,)
  >>> planner.observe(200)
  >>> planner.positions(640)
  (192,)
  """

  def __init__(
    self, policy: PlacementPolicy, *, depths: int, warming_up: bool = False
  ) -> None:
    """Starts with empty statistics.

    Args:
      policy: what to plan by.
      depths: number of depth bins N of `policy.chunk` tokens, at least 2;
        deeper overlaps count in the last bin.
      warming_up: make no plan, or no final one, until `end_warmup` is called.

    Raises:
      ValueError: fewer than two depths.
    """
    if depths < 2:
      raise ValueError(f"depths must be at least 2, got {depths}")
    self.policy = policy
    self.counts = np.zeros(depths, np.float64)
    self.observations = 0
    self._warming_up = warming_up
    self._plan: tuple[int, ...] | None = None
    self._stale = False
    self._decay = policy.decay if policy.replan == "decaying" else 1.0
    self._conditional = None
    if policy.name == "conditional":
      self._conditional = Conditional(
        budget=float(policy.budget or 0),
        chunk=policy.chunk,
        depths=depths,
        decay=self._decay,
      )

  def describe(
    self, length: int, overlap_tokens: int, matched: Features | None = None
  ) -> Features:
    """What `conditional` needs to know of an entry, to be kept with it.

    Args:
      length: tokens of the entry.
      overlap_tokens: how many of them equal a stored prefix.
      matched: of the entry that has this prefix, None if it is not known.

    >>> planner = Planner(PlacementPolicy("conditional", 1), depths=16)
    >>> planner.describe(640, 0)
    Features(length=640, overlap=0, age=0, born=0)
    """
    born = self.observations
    age = 0 if matched is None else max(1, born - matched.born)
    return Features(length, overlap_tokens, age, born)

  def observe(
    self,
    overlap_tokens: int,
    *,
    entry: Features | None = None,
    matched: Features | None = None,
  ) -> None:
    """Counts the overlap of one request; misses count, as 0.

    Args:
      overlap_tokens: leading tokens that equal a stored prefix, >= 0.
      entry: what `describe` said of the request's own entry.
      matched: what it said of the entry that was matched. `conditional` learns
        from both, and nothing without the first; the others need neither.

    Raises:
      ValueError: a negative overlap; nothing is counted then.
    """
    if overlap_tokens < 0:
      raise ValueError(
        f"overlap_tokens must not be negative, got {overlap_tokens}"
      )
    self.counts *= self._decay
    depth = overlap_tokens // self.policy.chunk
    self.counts[min(depth, self.counts.shape[0] - 1)] += 1.0
    self.observations += 1
    if self._conditional and entry is not None and not self._frozen:
      self._conditional.observe(overlap_tokens, entry=entry, matched=matched)
    if self.observations % self.policy.every == 0:
      self._stale = True

  @property
  def _frozen(self) -> bool:
    """Whether `conditional` is frozen: it has made the plan it stays with."""
    frozen = self.policy.replan == "frozen" and not self._warming_up
    return frozen and self.observations > self.policy.every

  def end_warmup(self) -> None:
    """Makes the first plan, from everything observed so far."""
    self._warming_up = False
    if self.observations:
      self._solve()

  def positions(
    self, length: int, features: Features | None = None
  ) -> tuple[int, ...]:
    """Where an entry should keep states.

    Args:
      length: tokens of the entry.
      features: what `describe` said of it; None for an entry of which only
        the length is known. Only `conditional` asks.

    Returns:
      Strictly ascending positions in tokens, multiples of the chunk,
      0 < p <= length.
    """
    return tuple(p for p in self.marks(length, features) if p > 0)

  def marks(
    self, length: int, features: Features | None = None
  ) -> tuple[int, ...]:
    """`positions`, and 0 where the rule asks for a place within chunk 0.

    The paper counts that one as stored, though it saves nothing.
    """
    chunk = self.policy.chunk
    wished = self._wished(length, features or Features(length))
    return tuple(sorted({p // chunk * chunk for p in wished}))

  def _wished(self, length: int, features: Features) -> list[int] | range:
    """Positions in tokens before they are floored to the lattice."""
    name, budget = self.policy.name, int(self.policy.budget or 0)
    if name not in (*LEARNED, "conditional"):
      return spaced(name, length, budget)
    if self._due():
      self._solve()
    if self._conditional and self._conditional.observations:
      depths = self._conditional.depths(features._replace(length=length))
      return [depth * self.policy.chunk for depth in depths]
    if self._plan is None:
      return spaced("balanced", length, budget)
    return [p for p in self._plan if p <= length]

  def _due(self) -> bool:
    """Whether a plan has to be made before the next placement."""
    if self._conditional:
      return self._stale and not self._frozen
    if self._warming_up or self.observations == 0:
      return False
    if self.policy.replan == "frozen":
      return self._plan is None and self.observations >= self.policy.every
    return self._plan is None or self._stale

  def _solve(self) -> None:
    """Makes a plan of the current statistics."""
    self._stale = False
    if self._conditional:
      self._conditional.plan()
    if self.policy.name not in LEARNED:
      return
    # More states than depths are of no use, and would take memory.
    budget = min(int(self.policy.budget or 0), self.counts.shape[0] - 1)
    if self.policy.name == "dp":
      bins = solve_paper_rule(self.counts, budget)
    else:
      placed = np.asarray(solve_placement(self.counts, budget).positions)
      bins = placed[placed > 0].tolist()
    self._plan = tuple(b * self.policy.chunk for b in bins)
