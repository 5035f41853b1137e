"""Placements that look at nothing but the length: the paper's baselines.

`spaced` has the rules, in any unit and as plain Python, for the host. The
functions named like the heuristics have the signature of `solve_placement` and
measure the same positions, in depth bins, against weights and a cost:

| name       | budget means                | positions, deepest depth L     |
|------------|-----------------------------|--------------------------------|
| `no_cache` | nothing                     | none                           |
| `last`     | nothing                     | L                              |
| `block`    | bins between states, B >= 1 | B, 2B, ... <= L                |
| `balanced` | states per entry, M         | M multiples of max(1, L/(M+1)) |
| `sqrt`     | nothing                     | multiples of floor(sqrt(L))    |
| `dyadic`   | the smallest position, >= 1 | powers of two >= budget, <= L  |
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from sparse_prefix_jax.placement.inputs import (
  Vector,
  check_budget,
  checked_inputs,
  needs_x64,
  x64_is_on,
)
from sparse_prefix_jax.placement.problem import (
  Placement,
  build_problem,
  check_fits,
  measure,
)


def _multiples(step: int, length: int) -> range:
  """`step, 2 step, ...` up to and including `length`."""
  return range(step, length + 1, step)


def _balanced(length: int, states: int) -> range:
  """The first `states` multiples of `max(1, length // (states + 1))`."""
  return _multiples(max(1, length // (states + 1)), length)[:states]


def _dyadic(length: int, smallest: int) -> list[int]:
  """Powers of two that are at least `smallest` and at most `length`."""
  first = (smallest - 1).bit_length()
  return [1 << e for e in range(first, length.bit_length())]


_RULES: dict[str, Callable[[int, int], range | list[int]]] = {
  "no_cache": lambda length, budget: [],
  "last": lambda length, budget: [length],
  "block": lambda length, budget: _multiples(budget, length),
  "balanced": _balanced,
  "sqrt": lambda length, budget: _multiples(math.isqrt(length), length),
  "dyadic": _dyadic,
}

NEEDS_STEP = ("block", "dyadic")
"""The heuristics whose budget is a distance, which must be at least 1."""


def spaced(name: str, length: int, budget: int) -> range | list[int]:
  """Returns where a heuristic keeps states of one prefix.

  Args:
    name: A name from the table above.
    length: The deepest possible position, in any unit.
    budget: What the table above says for this name.

  Returns:
    Ascending positions > 0 and <= length, in the unit of `length`.

  Raises:
    ValueError: If the name is unknown, or a budget that is a distance is below
      1.

  >>> list(spaced("balanced", 10, 2)), spaced("dyadic", 5000, 768)
  ([3, 6], [1024, 2048, 4096])
  """
  if name not in _RULES:
    raise ValueError(f"name must be one of {', '.join(_RULES)}, got {name!r}")
  if name in NEEDS_STEP and budget < 1:
    raise ValueError(f"budget of {name} must be at least 1, got {budget}")
  return _RULES[name](length, budget) if length > 0 else []


@partial(jax.jit, static_argnames=("integer", "checked"))
def _measured(
  weights: jax.Array,
  cost: jax.Array,
  positions: jax.Array,
  *,
  integer: str,
  checked: bool,
) -> Placement:
  return measure(build_problem(weights, cost, integer, checked), positions)


def _heuristic(
  name: str,
  weights: Vector,
  budget: int,
  cost: Vector | None,
  integer: str | None,
) -> Placement:
  """Places by rule for L = N - 1 and measures the result."""
  budget = check_budget(budget)
  weights, cost, integer, checked = checked_inputs(weights, cost, integer)
  positions = np.asarray(spaced(name, weights.shape[0] - 1, budget), np.int32)
  with jax.enable_x64(needs_x64(integer, weights, cost) or x64_is_on()):
    placement = _measured(
      weights, cost, positions, integer=integer, checked=checked
    )
  return check_fits(placement, integer) if checked else placement


def no_cache(
  weights: Vector,
  budget: int = 0,
  cost: Vector | None = None,
  *,
  integer: str | None = None,
) -> Placement:
  """Keeps nothing; everything is recomputed.

  Args:
    weights: [N] The weights of the overlap depths, as in `solve_placement`.
    budget: It is not used.
    cost: [N] The cumulative cost; None for the linear one.
    integer: The type to solve in, as in `solve_placement`.

  Returns:
    A placement without positions. Raises as `solve_placement` does.

  >>> float(no_cache([1, 1, 1]).expected_recompute)
  1.0
  """
  return _heuristic("no_cache", weights, budget, cost, integer)


def last(
  weights: Vector,
  budget: int = 1,
  cost: Vector | None = None,
  *,
  integer: str | None = None,
) -> Placement:
  """Keeps one state, at the deepest depth.

  Args:
    weights: [N] The weights of the overlap depths, as in `solve_placement`.
    budget: It is not used.
    cost: [N] The cumulative cost; None for the linear one.
    integer: The type to solve in, as in `solve_placement`.

  Returns:
    A placement with position N - 1. Raises as `solve_placement` does.

  >>> last([0, 1, 1]).positions.tolist()
  [2]
  """
  return _heuristic("last", weights, budget, cost, integer)


def block(
  weights: Vector,
  budget: int,
  cost: Vector | None = None,
  *,
  integer: str | None = None,
) -> Placement:
  """Keeps a state every `budget` bins.

  Args:
    weights: [N] The weights of the overlap depths, as in `solve_placement`.
    budget: How many bins lie between states, at least 1.
    cost: [N] The cumulative cost; None for the linear one.
    integer: The type to solve in, as in `solve_placement`.

  Returns:
    A placement of floor((N - 1) / budget) positions. Raises as
    `solve_placement` does, and for a budget of 0.

  >>> block([1, 1, 1, 1, 1, 1], 2).positions.tolist()
  [2, 4]
  """
  return _heuristic("block", weights, budget, cost, integer)


def balanced(
  weights: Vector,
  budget: int,
  cost: Vector | None = None,
  *,
  integer: str | None = None,
) -> Placement:
  """Keeps `budget` states at equal distances.

  Args:
    weights: [N] The weights of the overlap depths, as in `solve_placement`.
    budget: The number of states M; the step is max(1, (N - 1) // (M + 1)).
    cost: [N] The cumulative cost; None for the linear one.
    integer: The type to solve in, as in `solve_placement`.

  Returns:
    A placement of min(M, N - 1) positions. Raises as `solve_placement` does.

  >>> balanced([1, 1, 1, 1, 1, 1, 1], 2).positions.tolist()
  [2, 4]
  """
  return _heuristic("balanced", weights, budget, cost, integer)


def sqrt(
  weights: Vector,
  budget: int = 0,
  cost: Vector | None = None,
  *,
  integer: str | None = None,
) -> Placement:
  """Keeps a state every floor(sqrt(N - 1)) bins.

  Args:
    weights: [N] The weights of the overlap depths, as in `solve_placement`.
    budget: It is not used.
    cost: [N] The cumulative cost; None for the linear one.
    integer: The type to solve in, as in `solve_placement`.

  Returns:
    A placement of about sqrt(N) positions. Raises as `solve_placement` does.

  >>> sqrt([1] * 10).positions.tolist()
  [3, 6, 9]
  """
  return _heuristic("sqrt", weights, budget, cost, integer)


def dyadic(
  weights: Vector,
  budget: int = 1,
  cost: Vector | None = None,
  *,
  integer: str | None = None,
) -> Placement:
  """Keeps a state at every power of two (the paper's `log`).

  Args:
    weights: [N] The weights of the overlap depths, as in `solve_placement`.
    budget: The smallest position allowed, at least 1.
    cost: [N] The cumulative cost; None for the linear one.
    integer: The type to solve in, as in `solve_placement`.

  Returns:
    A placement of at most log2(N) positions. Raises as `solve_placement`
    does, and for a budget of 0.

  >>> dyadic([1] * 10, 2).positions.tolist()
  [2, 4, 8]
  """
  return _heuristic("dyadic", weights, budget, cost, integer)


HEURISTICS: dict[str, Callable[..., Placement]] = {
  "no_cache": no_cache,
  "last": last,
  "block": block,
  "balanced": balanced,
  "sqrt": sqrt,
  "dyadic": dyadic,
}
"""The heuristics by name; each is called as `solve_placement` is."""
