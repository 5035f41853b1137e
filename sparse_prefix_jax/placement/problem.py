"""The placement problem in exact integers: what is asked, and what comes back.

Choose positions `s_1 < ... < s_m` that minimise (docs/design.md, "Where states
are kept")

    sum_t w(t) (F(t) - F(deepest s_i <= t))

for weights `w(t)` of the overlap depths `t = 0 .. N-1` and a cumulative cost
`F` with `F(0) = 0` that never decreases. With the survival
`G(s) = sum of w(t) over t >= s` the saved part is a staircase under `G`:
`sum_i (F(s_i) - F(s_{i-1})) G(s_i)`. Everything here is in units of depth bins.

Integers are used as they are. Floats are scaled by powers of two, so that
`w_total * F(N-1)` just fits the integer type, and rounded; what the rounding
can cost at most is part of the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32

from sparse_prefix_jax.array_typing import Flag, Positions
from sparse_prefix_jax.placement.inputs import (
  INTEGERS,
  is_concrete,
  is_integer,
  needs_x64,
)

UNUSED = -1
"""Stands for a place in `Placement.positions` that is not used."""

# Of the bits, these many go to a cost that has to be scaled; the weights,
# which span more orders of magnitude, get the rest.
_COST_BITS = {"int32": 12, "int64": 24}

# The least float32 that no device takes for 0.
_LEAST = np.finfo(np.float32).tiny

# The sum that a scale is computed from is rounded; this covers its error.
_SAFETY = 1.0 - 1e-3


class Placement(NamedTuple):
  """A choice of places for states, and what it costs.

  Attributes:
    positions: int32 [m], depth bins in ascending order, then `-1` for places
      that are not used (more budget than is useful).
    expected_recompute: float32, mean cost recomputed per request, in the units
      of the cost (`objective / scale / w_total`).
    valid: False if weights or cost were bad or all zero (only possible under
      `jit`; concrete bad values raise). Then there are no positions.
    objective: The minimised sum as an exact integer of the chosen type.
    scale: float32, integer units per unit of weight times cost; 1 if nothing
      was scaled, 0 or inf where float32 cannot hold it.
    loss_bound: float32, how much more than the true optimum the positions can
      cost in `expected_recompute` because floats were rounded; 0 if exact.
  """

  positions: Positions
  expected_recompute: Float32[Array, ""]
  valid: Flag
  objective: Int[Array, ""]
  scale: Float32[Array, ""]
  loss_bound: Float32[Array, ""]


class Problem(NamedTuple):
  """The weights and the cost as exact integers of one type, and their scale.

  Attributes:
    weights: [N] integer weights `w`, all zero where the input was bad.
    survival: [N] `G(s)`, the sum of the weights at `s` and deeper.
    cost: [N] integer cumulative cost `F`.
    cost_exponent: int32, log2 of the integer units per unit of cost.
    scale, loss_bound, valid: As in `Placement`.
  """

  weights: Int[Array, "N"]
  survival: Int[Array, "N"]
  cost: Int[Array, "N"]
  cost_exponent: Int32[Array, ""]
  scale: Float32[Array, ""]
  loss_bound: Float32[Array, ""]
  valid: Bool[Array, ""]


def _valid(weights: jax.Array, cost: jax.Array) -> jax.Array:
  """What `check_weights` and `check_cost` check, as one traced flag."""
  good = jnp.all(jnp.isfinite(weights)) & jnp.all(weights >= 0)
  good &= jnp.any(weights > 0) & jnp.all(jnp.isfinite(cost))
  if not is_integer(cost):
    good &= cost[-1].astype(jnp.float32) < jnp.float32(jnp.inf)
  return good & (cost[0] == 0) & jnp.all(cost[1:] >= cost[:-1])


def _exponent(
  values: jax.Array, limit: jax.Array, total: jax.Array
) -> jax.Array:
  """Largest e with `total * 2**e <= limit`; 0 for integers, used as they are.

  Args:
    values: [N], what will be scaled.
    limit: What the scaled total may be.
    total: The total now.

  Returns:
    int32 exponent; 0 too where no exponent would do.
  """
  if is_integer(values):
    return jnp.zeros((), jnp.int32)
  good = (limit > 0) & (total > 0)
  ratio = jnp.where(good, limit / total, jnp.ones_like(total))
  return jnp.floor(jnp.log2(ratio)).astype(jnp.int32)


def _fits(values: jax.Array, dtype: np.dtype) -> jax.Array:
  """Whether no value wraps in `dtype`; asked before they are narrowed."""
  most = jnp.iinfo(dtype).max
  if not is_integer(values):
    # The largest integer itself would be rounded up to the power of two.
    return jnp.all(values < jnp.asarray(2.0 ** most.bit_length(), values.dtype))
  if jnp.iinfo(values.dtype).max <= most:
    return jnp.asarray(True)
  return jnp.all(values <= jnp.asarray(most, values.dtype))


def _scaled(
  values: jax.Array, exponent: jax.Array, dtype: np.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rounds `values * 2**exponent` to integers.

  Returns:
    The integers, the error left in the old units, and whether they all fit.
  """
  if is_integer(values):
    fits = _fits(values, dtype)
    return values.astype(dtype), jnp.zeros(values.shape, jnp.float32), fits
  rounded = jnp.round(jnp.ldexp(values, exponent))
  error = jnp.abs(values - jnp.ldexp(rounded, -exponent))
  return rounded.astype(dtype), error.astype(jnp.float32), _fits(rounded, dtype)


def _is_inexact(
  values: jax.Array, units: jax.Array, exponent: jax.Array, real: type
) -> jax.Array:
  """Whether `units / 2**exponent` are other numbers than `values`."""
  if is_integer(values):
    return jnp.asarray(False)
  restored = jnp.ldexp(units.astype(real), -exponent)
  return jnp.any(restored != values.astype(real))


def _normalised(
  values: jax.Array, valid: jax.Array, real: type
) -> tuple[jax.Array, jax.Array]:
  """Zeros where the input was bad; floats below 1 in the type `real`.

  Sums and products of floats near the ends of their type would overflow or
  vanish, so that they are first divided by a power of two.

  Returns:
    The values, and log2 of what they were divided by; 0 for integers.
  """
  values = jnp.where(valid, values, jnp.zeros_like(values))
  if is_integer(values):
    return values, jnp.zeros((), jnp.int32)
  values = values.astype(real)
  exponent = jnp.frexp(jnp.max(values))[1].astype(jnp.int32)
  return jnp.ldexp(values, -exponent), exponent


def _mean_loss(
  weights: jax.Array,
  cost: jax.Array,
  weight_error: jax.Array,
  cost_error: jax.Array,
) -> jax.Array:
  """Bound on what rounding costs, as float32 per unit of weight.

  For any positions the rounded objective is off by at most
  `sum_t |dw(t)| F(t) + w(t) (|dF(t)| + max |dF|)`, so that an optimum of the
  rounded problem is worse than the true one by at most twice that.
  """
  weights, cost = weights.astype(jnp.float32), cost.astype(jnp.float32)
  lost = weight_error * cost + (weights + weight_error) * (
    cost_error + jnp.max(cost_error)
  )
  total = jnp.maximum(jnp.sum(weights), jnp.float32(1e-30))
  # A little more than 2, for the float32 arithmetic of the bound itself.
  return jnp.float32(2.01) * jnp.sum(lost) / total


def build_problem(
  weights: jax.Array, cost: jax.Array, integer: str, checked: bool
) -> Problem:
  """Scales weights and cost to integers of one type (traceable).

  Args:
    weights: [N] Numbers.
    cost: [N] Numbers.
    integer: A key of `INTEGERS`.
    checked: The values were checked on the host, and integers fit; nothing is
      left to find out in the program.

  Returns:
    The problem; `valid` is False and the weights are zero if anything is bad.
  """
  dtype, limit = np.dtype(integer), 2.0 ** INTEGERS[integer]
  real = jnp.float64 if needs_x64(integer, weights, cost) else jnp.float32
  valid = jnp.asarray(True) if checked else _valid(weights, cost)
  given, paid = weights, cost
  weights, weight_size = _normalised(weights, valid, real)
  cost, cost_size = _normalised(cost, valid, real)
  total, top = jnp.sum(weights.astype(real)), cost[-1].astype(real)

  # The cost takes its bits first, the weights all that is left. Rounding can
  # add a half to every weight and to the last cost.
  if is_integer(weights):
    cost_limit = limit * _SAFETY / jnp.maximum(total, jnp.ones((), real)) - 1.0
  else:
    cost_limit = jnp.asarray(2.0 ** _COST_BITS[integer], real)
  cost_exponent = _exponent(cost, cost_limit, top)
  cost_units, cost_error, cost_fits = _scaled(cost, cost_exponent, dtype)
  top_units = cost_units[-1].astype(real)
  weight_limit = limit * _SAFETY / (top_units + 1.0) - weights.shape[0]
  exponent = _exponent(weights, weight_limit, total)
  weight_units, weight_error, weights_fit = _scaled(weights, exponent, dtype)
  survival = jnp.cumsum(weight_units[::-1], dtype=dtype)[::-1]
  valid &= cost_fits & weights_fit & _holds(survival, cost_units[-1], integer)

  loss = _mean_loss(weights, cost, weight_error, cost_error)
  exponent -= weight_size
  cost_exponent -= cost_size
  inexact = _is_inexact(given, weight_units, exponent, real)
  inexact |= _is_inexact(paid, cost_units, cost_exponent, real)
  loss = jnp.ldexp(loss, cost_size)
  return Problem(
    weights=jnp.where(valid, weight_units, jnp.zeros_like(weight_units)),
    survival=jnp.where(valid, survival, jnp.zeros_like(survival)),
    cost=cost_units,
    cost_exponent=cost_exponent,
    scale=jnp.ldexp(jnp.float32(1.0), cost_exponent + exponent),
    # What float32 has no number for is not nothing.
    loss_bound=jnp.where(valid & inexact, jnp.maximum(loss, _LEAST), loss),
    valid=valid,
  )


def _holds(
  survival: Int[Array, "N"], top: Int[Array, ""], integer: str
) -> jax.Array:
  """Whether `w_total * top` is below the limit of the type, in exact integers.

  A sum of weights that fit one by one is negative where it first wraps.
  """
  most = jnp.asarray(2 ** INTEGERS[integer] - 1, top.dtype)
  room = most // jnp.maximum(top, jnp.ones_like(top))
  return jnp.all(survival >= 0) & (survival[0] > 0) & (survival[0] <= room)


def measure(problem: Problem, positions: Positions) -> Placement:
  """Computes what keeping states at `positions` costs, the sum above.

  Args:
    problem: The weights and the cost.
    positions: int32 [m], ascending, `-1` for none at the end.

  Returns:
    The placement with its exact objective.
  """
  cost, survival, dtype = problem.cost, problem.survival, problem.cost.dtype
  edges = jnp.concatenate([jnp.zeros((1,), jnp.int32), positions])
  edges = jax.lax.cummax(jnp.maximum(edges, jnp.int32(0)))
  steps = cost[edges[1:]] - cost[edges[:-1]]
  saved = jnp.sum(steps * survival[edges[1:]], dtype=dtype)
  objective = jnp.sum(problem.weights * cost, dtype=dtype) - saved
  total = jnp.maximum(survival[0], jnp.ones((), dtype)).astype(jnp.float32)
  mean = objective.astype(jnp.float32) / total
  return Placement(
    positions=positions,
    expected_recompute=jnp.ldexp(mean, -problem.cost_exponent),
    valid=problem.valid,
    objective=objective,
    scale=problem.scale,
    loss_bound=problem.loss_bound,
  )


def check_fits(placement: Placement, integer: str) -> Placement:
  """Returns the placement, or refuses one whose values did not fit the type.

  Args:
    placement: What was found.
    integer: The name of the type.

  Raises:
    ValueError: If concrete values did not fit.
  """
  if is_concrete(placement.valid) and not bool(placement.valid):
    raise ValueError(
      f"weights and cost do not fit {integer}: too many depths or too large a"
      " cost, use integer='int64' or smaller costs"
    )
  return placement
