"""What `solve_placement` and the heuristics accept, checked on the host.

Values are checked where they are concrete; what is traced by `jit` is checked
by the program itself (`problem.build_problem`).
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparse_prefix_jax.kinds import brief, host_array
from sparse_prefix_jax.whole_numbers import as_float, check_whole

# Weights or a cumulative cost as a user may hand them over.
Vector: TypeAlias = jax.Array | np.ndarray | list | tuple

INTEGERS = {"int32": 31, "int64": 62}
"""Integer types by name, and log2 of what `w_total * F(N-1)` stays below."""


# The largest cost whose mean float32 can hold.
_MOST_COST = float(np.finfo(np.float32).max)


def linear_cost(depths: int) -> np.ndarray:
  """Returns `F(t) = t`: every recomputed depth bin costs the same.

  Args:
    depths: Number of depth bins N.

  Returns:
    int32 [N].

  >>> linear_cost(4)
  array([0, 1, 2, 3], dtype=int32)
  """
  return np.arange(check_budget(depths, "depths"), dtype=np.int32)


def quadratic_cost(depths: int, ratio: float) -> np.ndarray:
  """Returns `F(t) = t + ratio t^2`, in which attention is the quadratic part.

  Args:
    depths: Number of depth bins N.
    ratio: The quadratic over the linear coefficient, per depth bin, >= 0.

  Returns:
    float64 [N].

  Raises:
    ValueError: If the ratio is negative or not finite, or the cost leaves
      float32.

  >>> quadratic_cost(4, 0.5)
  array([0. , 1.5, 4. , 7.5])
  """
  given, ratio = ratio, as_float(ratio)
  if not 0 <= ratio < math.inf:
    raise ValueError(
      f"ratio must be finite and not negative, got {brief(given)}"
    )
  depths = check_budget(depths, "depths")
  depth = np.arange(depths, dtype=np.float64)
  deepest = max(depths - 1, 0)
  if ratio * deepest > _MOST_COST / max(deepest, 1) - 1:
    raise ValueError(
      f"ratio must keep the cost of {depths} depths below {_MOST_COST:.2g}, got"
      f" {ratio}"
    )
  return depth + ratio * depth * depth


def is_concrete(*arrays: object) -> bool:
  """Says whether all values can be looked at, as those of a tracer cannot."""
  return not any(isinstance(a, Tracer) for a in arrays)


def check_budget(budget: int, name: str = "budget") -> int:
  """Returns the budget as an int.

  Args:
    budget: How many states, any kind of integer.
    name: What an error calls it.

  Raises:
    ValueError: If it is no integer, or negative.

  >>> check_budget(3)
  3
  """
  value = check_whole(name, budget)
  if value < 0:
    raise ValueError(f"{name} must not be negative, got {value}")
  return value


def as_vector(values: Vector, name: str) -> jax.Array | np.ndarray:
  """Returns a one-dimensional numeric array; lists become NumPy arrays.

  Raises:
    ValueError: If the rank is another, there are fewer than two values, or they
      are no real numbers, or masked.
  """
  array = values if isinstance(values, jax.Array) else host_array(name, values)
  if array.ndim != 1 or array.shape[0] < 2:
    raise ValueError(
      f"{name} must be one-dimensional with at least two depths, got shape"
      f" {tuple(array.shape)}"
    )
  if not _is_real(array.dtype):
    raise ValueError(
      f"{name} must be real numbers of at most 64 bits, got dtype {array.dtype}"
    )
  if isinstance(array, np.ndarray) and not array.dtype.isnative:
    return array.astype(array.dtype.newbyteorder("="))
  return array


def _is_real(dtype: np.dtype) -> bool:
  """Whether JAX can calculate with it.

  Durations, which NumPy calls integers, complex numbers and extended precision
  are not: JAX has no such type, or would drop a part without a word.
  """
  kinds = (jnp.integer, jnp.floating)
  real = any(jnp.issubdtype(dtype, kind) for kind in kinds)
  return real and dtype.kind != "m" and dtype.itemsize <= 8


def check_weights(weights: np.ndarray) -> None:
  """Refuses weights that are negative, NaN, infinite or all zero.

  Those are refused, too, that are all subnormal: the device takes them for 0.

  Raises:
    ValueError: If the weights are refused; it says what is wrong and where.
  """
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
  if not is_integer(weights):
    wide = weights.dtype.itemsize == 8
    least = float(np.finfo(np.float64 if wide else np.float32).tiny)
    if float(np.max(weights)) < least:
      raise ValueError(
        f"weights must not all be below {least:.2g}, got at most"
        f" {float(np.max(weights))}; multiply them by a power of two"
      )


def check_cost(cost: np.ndarray, depths: int) -> None:
  """Refuses a cost that is no non-decreasing F with F(0) = 0.

  Raises:
    ValueError: If the cost is refused; it says what is wrong and where.
  """
  if cost.shape[0] != depths:
    raise ValueError(
      f"cost must have one value per depth, got {cost.shape[0]} for"
      f" {depths} weights"
    )
  if not np.all(np.isfinite(cost)):
    raise ValueError("cost must be finite, got NaN or infinity")
  if not is_integer(cost) and float(cost[-1]) > _MOST_COST:
    raise ValueError(
      f"cost must stay below {_MOST_COST:.2g}, which float32 holds, got"
      f" {float(cost[-1])}; divide it by a power of two"
    )
  if cost[0] != 0:
    raise ValueError(f"cost must be 0 at depth 0, got {cost[0]}")
  if np.any(cost[1:] < cost[:-1]):
    where = int(np.argmax(cost[1:] < cost[:-1])) + 1
    raise ValueError(
      f"cost must not decrease, got {cost[where]} after {cost[where - 1]} at"
      f" depth {where}"
    )


def concrete_cost(cost: Vector, depths: int) -> np.ndarray:
  """Returns a cumulative cost as an array of the host.

  Args:
    cost: [N] The cost F, F(0) = 0, never decreasing.
    depths: How many depths N it must have.

  Raises:
    ValueError: If it is none; the error says what is wrong and where.

  >>> concrete_cost([0, 1, 3], 3)
  array([0, 1, 3])
  """
  vector = np.asarray(as_vector(cost, "cost"))
  check_cost(vector, depths)
  return vector


def is_integer(array: jax.Array | np.ndarray) -> bool:
  """Says whether the values are integers, which are used as they are."""
  return jnp.issubdtype(array.dtype, jnp.integer)


def _total(weights: np.ndarray) -> int:
  """The exact sum of integers that are not negative, in two 32-bit limbs."""
  wide = weights.astype(np.uint64)
  high, low = wide >> np.uint64(32), wide & np.uint64(2**32 - 1)
  return (int(high.sum()) << 32) + int(low.sum())


def _fitting_integer(weights: np.ndarray, cost: np.ndarray) -> str:
  """The narrowest type that holds `w_total * F(N-1)`."""
  # The weights are summed too, also where nothing costs anything.
  peak = _total(weights) * max(int(cost[-1]), 1)
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
  """Chooses the integer type to solve in.

  Args:
    weights: [N] Numbers.
    cost: [N] Numbers.
    integer: "int32", "int64", or None to choose: concrete integers get the
      narrowest type that holds them, everything else gets int64.

  Raises:
    ValueError: If the name is unknown, or concrete integers do not fit.
  """
  if not isinstance(integer, str | None) or integer not in (None, *INTEGERS):
    raise ValueError(
      f"integer must be one of {', '.join(INTEGERS)} or None, got"
      f" {brief(integer)}"
    )
  exact = is_integer(weights) and is_integer(cost)
  if not (exact and is_concrete(weights, cost)):
    return integer or "int64"
  fitting = _fitting_integer(np.asarray(weights), np.asarray(cost))
  if integer == "int32" and fitting == "int64":
    raise ValueError(
      "integer='int32' needs weights times cost below 2**31 in all, use 'int64'"
    )
  return integer or fitting


def needs_x64(integer: str, *arrays: jax.Array | np.ndarray) -> bool:
  """Says whether 64-bit types have to be allowed to solve the problem."""
  return integer == "int64" or any(a.dtype.itemsize == 8 for a in arrays)


def x64_is_on() -> bool:
  """Says whether the process allows 64-bit types anyway."""
  return bool(jax.config.read("jax_enable_x64"))


def checked_inputs(
  weights: Vector, cost: Vector | None, integer: str | None
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray, str, bool]:
  """Checks everything that can be checked before the program runs.

  Args:
    weights: [N] Numbers.
    cost: [N] Numbers, or None for the linear cost.
    integer: "int32", "int64" or None to choose.

  Returns:
    The weights, the cost, the integer type, and whether all values were
    checked.

  Raises:
    ValueError: If a concrete input is wrong; it says how, in one sentence.
  """
  weights = as_vector(weights, "weights")
  depths = weights.shape[0]
  cost = linear_cost(depths) if cost is None else as_vector(cost, "cost")
  if is_concrete(weights):
    check_weights(np.asarray(weights))
  if is_concrete(cost):
    check_cost(np.asarray(cost), depths)
  elif cost.shape[0] != depths:
    raise ValueError(
      f"cost must have one value per depth, got {cost.shape[0]} for {depths}"
      " weights"
    )
  chosen = choose_integer(weights, cost, integer)
  return weights, cost, chosen, is_concrete(weights, cost)
