"""Which strategies the demo compares, at equal numbers of states."""

from collections.abc import Sequence
from typing import NamedTuple

from sparse_prefix_jax.placement import PlacementPolicy

LEVELS = (1, 2, 4)
"""States per entry at which strategies with a budget are compared."""

# Learned placements plan anew after every request: the stream is short, and a
# plan takes less than a millisecond.
_REPLAN_EVERY = 1
_DYADIC_FROM = 256


class Strategy(NamedTuple):
  """A row of the demo's table.

  Attributes:
    policy: where entries keep states.
    level: states per entry that the budget was chosen for; None for
      strategies without that choice.
  """

  policy: PlacementPolicy
  level: int | None = None

  @property
  def label(self) -> str:
    """Name and budget, for a progress bar or an error.

    >>> strategies(lengths=[2500], levels=[2])[-1].label
    'conditional 2'
    """
    budget = self.policy.budget
    return self.policy.name + ("" if budget is None else f" {budget}")


def strategies(
  *, lengths: Sequence[int], levels: Sequence[int] = LEVELS, chunk: int = 64
) -> list[Strategy]:
  """All strategies, the reference run `no_cache` first.

  A budget of `block` is a distance, so it is chosen by the lengths of the
  prompts: half way between those that give `level` and `level + 1` states.

  Args:
    lengths: tokens of the prompts, at least one.
    levels: states per entry, each at least 1.
    chunk: tokens between lattice positions.

  Returns:
    no_cache, last, sqrt and dyadic once; block, balanced, dp, optimal and
    conditional for every level.

  Raises:
    ValueError: no lengths, no levels, or a level below 1.

  >>> [s.label for s in strategies(lengths=[2500], levels=[1])[4:]]
  ['block 1664', 'balanced 1', 'dp 1', 'optimal 1', 'conditional 1']
  """
  if not lengths:
    raise ValueError("lengths is empty; it must name at least one prompt.")
  if not levels or min(levels) < 1:
    raise ValueError(f"levels is {tuple(levels)}; it must be numbers >= 1.")
  found = [Strategy(PlacementPolicy("no_cache", chunk=chunk))]
  found += [Strategy(PlacementPolicy(n, chunk=chunk)) for n in ("last", "sqrt")]
  found.append(Strategy(PlacementPolicy("dyadic", _DYADIC_FROM, chunk)))
  mean = sum(lengths) / len(lengths)
  for level in levels:
    distance = max(1, round(mean / (level + 0.5) / chunk)) * chunk
    budgets = {"block": distance, "balanced": level, "dp": level}
    budgets |= {"optimal": level, "conditional": level}
    found += [
      Strategy(PlacementPolicy(name, budget, chunk, every=_REPLAN_EVERY), level)
      for name, budget in budgets.items()
    ]
  return found
