"""Which strategy is best with how many states: pure functions of points.

A point is any named tuple with `states`, the states per entry, and figures. A
figure is better where it is lower, except `saved`, the share of the prompt
tokens that were restored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def kind_of(name: str) -> str:
  """`balanced` of `balanced:5`."""
  return name.partition(":")[0]


def frontier(points: Mapping[str, Any], of: str) -> list[str]:
  """Strategies that no other beats with as few states, by their states."""
  best, names = float("inf"), []
  order = sorted(points, key=lambda n: (points[n].states, _cost(points[n], of)))
  for name in order:
    if _cost(points[name], of) < best:
      best = _cost(points[name], of)
      names.append(name)
  return names


def leads(points: Mapping[str, Any], kind: str, of: str) -> dict[str, float]:
  """How much better one kind of strategy is with as many states.

  Between its budgets, a mixture of two of them is as good as their straight
  line; fewer states than are allowed may be used. It begins at the points
  without states, if there are any; what stores less than it is left out.

  Args:
    points: by name and budget.
    kind: the strategy whose lead is asked for.
    of: the figure.

  Returns:
    By name, for every point of another kind: the lead in the unit of the
    figure, negative where `kind` falls short. Nothing if there is no point of
    the kind.
  """
  ours = [p for name, p in points.items() if kind_of(name) == kind]
  if not ours:
    return {}
  empty = [p for p in points.values() if not p.states]
  curve = sorted((p.states, -_cost(p, of)) for p in (*ours, *empty))
  states, values = np.array(curve, np.float64).T
  best = np.maximum.accumulate(values)
  return {
    name: float(np.interp(p.states, states, best) + _cost(p, of))
    for name, p in points.items()
    if kind_of(name) != kind and p.states >= states[0]
  }


def against_others(
  points: Mapping[str, Any], kind: str, figures: Sequence[str]
) -> dict[str, Any]:
  """The leads of a kind in every figure, and where it falls short."""
  found = {of: leads(points, kind, of) for of in figures}
  return {
    "leads": found,
    "falls_short": {
      of: [name for name, lead in of_one.items() if lead < 0]
      for of, of_one in found.items()
    },
  }


def sentence(compared: Mapping[str, Any], kind: str, of: str) -> str:
  """One line for a reader: the least lead, or everything that is better."""
  found, short = compared["leads"][of], compared["falls_short"][of]
  if short:
    worse = ", ".join(f"{name} by {-found[name]:.4g}" for name in short)
    return f"{of}: {kind} falls short of {worse}"
  ahead = sum(lead > 0 for lead in found.values())
  return (
    f"{of}: with as many states {kind} is ahead of {ahead} points, equal to"
    f" {len(found) - ahead}, behind none"
  )


def _cost(point: Any, of: str) -> float:
  value = getattr(point, of)
  return -value if of == "saved" else value
