"""The placement problem in exact integers: what is asked, and what comes back.

Choose positions `s_1 < ... < s_m` that minimise (DESIGN section 5)

    sum_t w(t) (F(t) - F(deepest s_i <= t))

for weights `w(t)` of the overlap depths `t = 0 .. N-1` and a cumulative cost
`F` with `F(0) = 0` that never decreases. With the survival
`G(s) = sum of w(t) over t >= s` the saved part is a staircase under `G`:
`sum_i (F(s_i) - F(s_{i-1})) G(s_i)`. Everything here is in units of depth bins.

Integers are used as they are. Floats are scaled by powers of two, so that
`w_total * F(N-1)` just fits the integer type, and rounded; what the rounding
can cost at most is part of the result.
"""

import math
import operator
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int

from sparse_prefix_jax.array_typing import Flag, Positions

# Weights or a cumulative cost as a user may hand them over.
Vector: TypeAlias = jax.Array | np.ndarray | list | tuple

NONE = -1
"""Sentinel of an unused place in `Placement.positions`."""

INTEGERS = {"int32": 31, "int64": 62}
"""Integer types by name, and log2 of the limit of `w_total * F(N-1)`."""

# Of the bits, these many go to a cost that has to be scaled; the weights,
# which span more orders of magnitude, get the rest.
_COST_BITS = {"int32": 12, "int64": 24}

# The sum that a scale is computed from is rounded; this covers its error.
_SAFETY = 1.0 - 1e-3


class Placement(NamedTuple):
  """Where to keep states, and what that costs.

  Attributes:
    positions: int32 [m], depth bins in ascending order, then `-1` for places
      that are not used (more budget than is useful).
    expected_recompute: float32, mean cost recomputed per request, in the units
      of the cost (`objective / scale / w_total`).
    valid: False if weights or cost were bad or all zero (only possible under
      `jit`; concrete bad values raise). Then there are no positions.
    objective: the minimised sum as an exact integer of the chosen type.
    scale: float32, integer units per unit of weight times cost; 1 if nothing
      was scaled.
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
  """Weights and cost as exact integers of one type, [N], and their scale.

  Attributes:
    weights: [N] integer weights `w`, all zero where the input was bad.
    survival: [N] `G(s)`, the sum of the weights at `s` and deeper.
    cost: [N] integer cumulative cost `F`.
    scale, loss_bound, valid: as in `Placement`.
  """

  weights: Int[Array, "N"]
  survival: Int[Array, "N"]
  cost: Int[Array, "N"]
  scale: Float32[Array, ""]
  loss_bound: Float32[Array, ""]
  valid: Bool[Array, ""]


def linear_cost(depths: int) -> np.ndarray:
  """`F(t) = t`: every recomputed depth bin costs the same.

  Args:
    depths: number of depth bins N.

  Returns:
    int32 [N].

  >>> linear_cost(4)
  array([0, 1, 2, 3], dtype=int32)
  """
  return np.arange(depths, dtype=np.int32)


def quadratic_cost(depths: int, ratio: float) -> np.ndarray:
  """`F(t) = t + ratio t^2`: a linear part, and attention to what came before.

  Args:
    depths: number of depth bins N.
    ratio: quadratic over linear coefficient, per depth bin, not negative.

  Returns:
    float64 [N].

  Raises:
    ValueError: ratio is negative or not finite.

  >>> quadratic_cost(4, 0.5)
  array([0. , 1.5, 4. , 7.5])
  """
  if not (math.isfinite(ratio) and ratio >= 0):
    raise ValueError(f"ratio must be finite and not negative, got {ratio}")
  depth = np.arange(depths, dtype=np.float64)
  return depth + ratio * depth * depth


def is_concrete(*arrays: Vector | None) -> bool:
  """Whether the values of all arrays can be looked at (no `jit` tracer)."""
  return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def check_budget(budget: int, name: str = "budget") -> int:
  """The budget as an int; ValueError where it is no integer or negative."""
  try:
    value = operator.index(budget)
  except TypeError:
    raise ValueError(f"{name} must be an integer, got {budget!r}") from None
  if value < 0:
    raise ValueError(f"{name} must not be negative, got {value}")
  return value


def as_vector(values: Vector, name: str) -> jax.Array | np.ndarray:
  """A one-dimensional numeric array; lists become NumPy arrays.

  Raises:
    ValueError: wrong rank, fewer than two values, or not numbers.
  """
  array = values if isinstance(values, jax.Array) else np.asarray(values)
  if array.ndim != 1 or array.shape[0] < 2:
    raise ValueError(
      f"{name} must be one-dimensional with at least two depths, got shape"
      f" {tuple(array.shape)}"
    )
  if array.dtype.kind == "b" or not jnp.issubdtype(array.dtype, jnp.number):
    raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
  return array


def check_weights(weights: np.ndarray) -> None:
  """Raises ValueError for weights that are negative, NaN, inf or all zero."""
  if not np.all(np.isfinite(weights)):
    where = int(np.argmin(np.isfinite(weights)))
    raise ValueError(
      f"weights must be finite, got {weights[where]} at depth {where}"
    )
  if np.any(weights < 0):
    where = int(np.argmax(weights < 0))
    raise ValueError(
      f"weights must not be negative, got {weights[where]} at depth {where}"
    )
  if not np.any(weights > 0):
    raise ValueError("weights must not all be zero")


def check_cost(cost: np.ndarray, depths: int) -> None:
  """Raises ValueError for a cost that is no non-decreasing F with F(0) = 0."""
  if cost.shape[0] != depths:
    raise ValueError(
      f"cost must have one value per depth, got {cost.shape[0]} for"
      f" {depths} weights"
    )
  if not np.all(np.isfinite(cost)):
    raise ValueError("cost must be finite, got NaN or infinity")
  if cost[0] != 0:
    raise ValueError(f"cost must be 0 at depth 0, got {cost[0]}")
  if np.any(cost[1:] < cost[:-1]):
    where = int(np.argmax(cost[1:] < cost[:-1])) + 1
    raise ValueError(
      f"cost must not decrease, got {cost[where]} after {cost[where - 1]} at"
      f" depth {where}"
    )


def _is_integer(array: jax.Array | np.ndarray) -> bool:
  return jnp.issubdtype(array.dtype, jnp.integer)


def _fitting_integer(weights: np.ndarray, cost: np.ndarray) -> str:
  """The narrowest type that holds `w_total * F(N-1)`, in Python integers."""
  peak = sum(int(w) for w in weights) * int(cost[-1])
  for name, bits in INTEGERS.items():
    if peak < 2**bits:
      return name
  raise ValueError(
    f"weights times cost must be below 2**62 in all, got {peak}; divide the"
    " weights, or pass them as floats"
  )


def choose_integer(
  weights: jax.Array | np.ndarray,
  cost: jax.Array | np.ndarray,
  integer: str | None,
) -> str:
  """The integer type to solve in (DESIGN section 5).

  Args:
    weights: [N]. cost: [N].
    integer: "int32", "int64", or None to choose: concrete integers get the
      narrowest type that holds them, everything else gets int64.

  Raises:
    ValueError: unknown name, or concrete integers that do not fit.
  """
  if integer is not None and integer not in INTEGERS:
    raise ValueError(
      f"integer must be one of {', '.join(INTEGERS)} or None, got {integer!r}"
    )
  exact = _is_integer(weights) and _is_integer(cost)
  if not (exact and is_concrete(weights, cost)):
    return integer or "int64"
  fitting = _fitting_integer(np.asarray(weights), np.asarray(cost))
  if integer == "int32" and fitting == "int64":
    raise ValueError(
      "integer='int32' needs weights times cost below 2**31 in all, use"
      " 'int64'"
    )
  return integer or fitting


def needs_x64(integer: str, *arrays: jax.Array | np.ndarray) -> bool:
  """Whether 64-bit types have to be allowed while the problem is solved."""
  return integer == "int64" or any(a.dtype.itemsize == 8 for a in arrays)


def _valid(weights: jax.Array, cost: jax.Array) -> jax.Array:
  """What `check_weights` and `check_cost` check, as one traced flag."""
  good = jnp.all(jnp.isfinite(weights)) & jnp.all(weights >= 0)
  good &= jnp.any(weights > 0) & jnp.all(jnp.isfinite(cost))
  return good & (cost[0] == 0) & jnp.all(cost[1:] >= cost[:-1])


def _scaled(
  values: jax.Array, exponent: jax.Array, dtype: np.dtype
) -> tuple[jax.Array, jax.Array]:
  """Rounds `values * 2**exponent`; also the error left, in the old units."""
  if _is_integer(values):
    return values.astype(dtype), jnp.zeros(values.shape, jnp.float32)
  rounded = jnp.round(jnp.ldexp(values, exponent))
  error = jnp.abs(values - jnp.ldexp(rounded, -exponent))
  return rounded.astype(dtype), error.astype(jnp.float32)


def _exponent(limit: jax.Array, total: jax.Array) -> jax.Array:
  """Largest e with `total * 2**e <= limit`, int32; 0 where there is none."""
  good = (limit > 0) & (total > 0)
  ratio = jnp.where(good, limit / total, jnp.ones_like(total))
  return jnp.floor(jnp.log2(ratio)).astype(jnp.int32)


def build_problem(
  weights: jax.Array, cost: jax.Array, integer: str, checked: bool
) -> Problem:
  """Scales weights and cost to integers of one type (traceable).

  A power of two scales a float without rounding, so that the only loss is the
  rounding to integers: for any choice of positions it is at most
  `sum_t |dw(t)| F(t) + w(t) (|dF(t)| + max |dF|)`, and an optimum of the
  rounded problem is worse than the true one by at most twice that.

  Args:
    weights: [N] numbers. cost: [N] numbers.
    integer: a key of `INTEGERS`.
    checked: the values are known to be good and to fit, so that nothing is
      left to find out under `jit`.
  """
  dtype = np.dtype(integer)
  limit, depths = 2.0 ** INTEGERS[integer], weights.shape[0]
  real = jnp.float64 if weights.dtype.itemsize == 8 else jnp.float32
  real = real if integer == "int32" else jnp.float64
  valid = jnp.asarray(True) if checked else _valid(weights, cost)
  weights = jnp.where(valid, weights, jnp.zeros_like(weights))
  cost = jnp.where(valid, cost, jnp.zeros_like(cost))
  if not _is_integer(weights):
    weights = weights.astype(real)
  if not _is_integer(cost):
    cost = cost.astype(real)
  total = jnp.sum(weights.astype(real))
  top = cost[-1].astype(real)

  # Floats: first the cost gets its bits, then the weights what is left.
  cost_limit = jnp.asarray(2.0 ** _COST_BITS[integer], real)
  if _is_integer(weights):
    cost_limit = limit / jnp.maximum(total, 1.0) * _SAFETY - 1.0
  cost_exponent = (
    jnp.int32(0) if _is_integer(cost) else _exponent(cost_limit, top)
  )
  cost_int, cost_error = _scaled(cost, cost_exponent, dtype)
  top_int = cost_int[-1].astype(real) + 1.0
  weight_limit = (limit / top_int - depths) * _SAFETY
  exponent = (
    jnp.int32(0) if _is_integer(weights) else _exponent(weight_limit, total)
  )
  weight_int, weight_error = _scaled(weights, exponent, dtype)
  if not checked:
    fits = jnp.ldexp(total, exponent) * (top_int - 1.0) < limit * _SAFETY
    valid &= fits
  weight_int = jnp.where(valid, weight_int, jnp.zeros_like(weight_int))

  single = lambda x: x.astype(jnp.float32)
  lost = weight_error * single(cost) + single(weights) * (
    cost_error + jnp.max(cost_error)
  )
  mean = jnp.sum(lost) / jnp.maximum(single(total), jnp.float32(1e-30))
  return Problem(
    weights=weight_int,
    survival=jnp.cumsum(weight_int[::-1], dtype=dtype)[::-1],
    cost=cost_int,
    scale=single(jnp.ldexp(jnp.ones((), real), exponent + cost_exponent)),
    loss_bound=jnp.float32(2.001) * mean,
    valid=valid,
  )


def measure(problem: Problem, positions: Positions) -> Placement:
  """What keeping states at `positions` costs (the sum in the module docstring).

  Args:
    problem: the weights and the cost.
    positions: int32 [m], ascending, `-1` for none at the end.

  Returns:
    The placement with its exact objective.
  """
  cost, survival = problem.cost, problem.survival
  filled = jnp.maximum(positions, 0)
  if positions.shape[0]:
    filled = jax.lax.cummax(filled)
  edges = jnp.concatenate([jnp.zeros((1,), jnp.int32), filled])
  steps = cost[edges[1:]] - cost[edges[:-1]]
  dtype = cost.dtype
  saved = jnp.sum(steps * survival[edges[1:]], dtype=dtype)
  objective = jnp.sum(problem.weights * cost, dtype=dtype) - saved
  units = jnp.maximum(survival[0], jnp.ones((), dtype)).astype(jnp.float32)
  # Total integer weight times the cost's own scale = scale times total weight.
  return Placement(
    positions=positions,
    expected_recompute=objective.astype(jnp.float32) / units,
    valid=problem.valid,
    objective=objective,
    scale=problem.scale,
    loss_bound=problem.loss_bound,
  )
