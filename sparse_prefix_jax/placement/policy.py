"""Which placement to use, by name: `PlacementPolicy`, checked configuration."""

import math
from dataclasses import dataclass
from typing import Any

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.placement.heuristics import NEEDS_STEP
from sparse_prefix_jax.whole_numbers import check_whole, is_real

DEFAULT_CHUNK = 64
"""How many tokens lie between lattice positions, unless configured."""

PLACEMENTS = {
  "no_cache": None,
  "last": None,
  "block": "tokens between states",
  "balanced": "states per entry",
  "sqrt": None,
  "dyadic": "smallest position in tokens",
  "dp": "states per entry",
  "optimal": "states per entry",
  "conditional": "states per entry on average, also a fraction",
  "adaptive": None,
}
"""The names of the placement policies, and what their budget means; None where
they have none."""

LEARNED = ("dp", "optimal", "conditional")
"""Policies that learn from the overlaps seen so far: `dp` and `optimal` place
all entries alike, `conditional` each by what is known of it."""

SHARED = ("adaptive",)
"""Policies that weigh the states of all entries against each other, under one
budget for everybody: they also say which state is evicted, and no `Planner`
places by them."""

REPLANNING = ("frozen", "periodic", "decaying")
"""How often learned policies plan again, and whether old counts fade."""


def budget_hint(name: Any) -> str:
  """What to add to a refusal of a name that brings its budget.

  Args:
    name: What was given as the name of a placement.

  >>> budget_hint("conditional:2")
  '; the budget is given apart, not after a colon'
  """
  known = isinstance(name, str) and name.partition(":")[0] in PLACEMENTS
  return "; the budget is given apart, not after a colon" if known else ""


def _check_fraction(budget: int | float | None) -> None:
  """Raises ValueError for what is no finite number; None is left out."""
  number = 0 if budget is None else budget
  # An int compares with a float of any size; converting it could overflow.
  if not is_real(number) or not -math.inf < number < math.inf:
    raise ValueError(f"budget must be a finite number, got {brief(budget)}")


def _check_budget(name: str, budget: int | float | None) -> None:
  """Raises ValueError where a budget is missing, superfluous or too small."""
  meaning = PLACEMENTS[name]
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
  """The rule by which entries keep states, by name; hashable configuration.

  Attributes:
    name: A key of `PLACEMENTS`.
    budget: What `PLACEMENTS` says for the name, None for names without one.
      Only `conditional` takes a fraction, since its budget is spent over many
      entries and the others' within each.
    chunk: Tokens between lattice positions c.
    replan: How often the learned ones plan: "frozen" plans once, "periodic"
      again after every `every` observations, and "decaying" also lets old
      counts fade.
    every: How many observations lie between plans. "frozen" makes its only one
      after so many, where there is no warm-up.
    decay: What an observation leaves of earlier counts, of "decaying" only. The
      defaults of all three are the paper's.

  Raises:
    ValueError: If a name is unknown, or a number out of range.

  >>> PlacementPolicy("balanced", budget=3).chunk
  64
  """

  name: str
  budget: int | float | None = None
  chunk: int = DEFAULT_CHUNK
  replan: str = "decaying"
  every: int = 10
  decay: float = 0.99

  def __post_init__(self) -> None:
    """Checks every field."""
    if not isinstance(self.name, str) or self.name not in PLACEMENTS:
      raise ValueError(
        f"placement must be one of {', '.join(PLACEMENTS)}, got"
        f" {brief(self.name)}{budget_hint(self.name)}"
      )
    check_whole("chunk", self.chunk)
    check_whole("every", self.every)
    if self.name == "conditional":
      _check_fraction(self.budget)
    else:
      check_whole("budget", 0 if self.budget is None else self.budget)
    _check_budget(self.name, self.budget)
    if not isinstance(self.replan, str) or self.replan not in REPLANNING:
      raise ValueError(
        f"replan must be one of {', '.join(REPLANNING)}, got"
        f" {brief(self.replan)}"
      )
    if self.chunk < 1 or self.every < 1:
      raise ValueError(
        f"chunk and every must be at least 1, got {self.chunk} and {self.every}"
      )
    if not is_real(self.decay) or not 0 < self.decay <= 1:
      raise ValueError(f"decay must be in (0, 1], got {brief(self.decay)}")
