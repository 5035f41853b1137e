"""What counts as a number where a user gives one."""

import math
import numbers
import operator
from typing import Any, TypeGuard

import numpy as np

from sparse_prefix_jax.kinds import brief

# NumPy counts durations as signed integers; Python does so with bools.
_NO_NUMBERS = (bool, np.timedelta64)


def is_whole(value: Any) -> TypeGuard[numbers.Integral]:
  """Whether it is an integer, of Python or of NumPy; a bool is none.

  Example:
    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
  """
  return isinstance(value, numbers.Integral) and is_real(value)


def is_real(value: Any) -> TypeGuard[float]:
  """Whether it is a real number, of Python or of NumPy; a bool is none.

  Example:
    >>> is_real(3), is_real(np.float32(3.5)), is_real(np.timedelta64(3, "s"))
    (True, True, False)
  """
  return isinstance(value, numbers.Real) and not isinstance(value, _NO_NUMBERS)


def as_float(value: Any) -> float:
  """A real number of Python, NumPy or JAX as a float; NaN of anything else.

  Example:
    >>> as_float(np.float32(0.5)), as_float("0.5"), as_float(10**400)
    (0.5, nan, nan)
  """
  if isinstance(value, (*_NO_NUMBERS, np.bool_, str, bytes)):
    return math.nan
  try:
    return float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def check_whole(name: str, value: Any) -> int:
  """An integer, of Python, of NumPy or of JAX.

  Args:
    name: What to call it in a message.
    value: What was given.

  Raises:
    ValueError: If it is no integer; a bool is none.

  >>> check_whole("keep", np.int64(3))
  3
  """
  try:
    if not isinstance(value, _NO_NUMBERS):
      return operator.index(value)
  except TypeError:  # It is none, or one that a traced program has yet to make.
    pass
  raise ValueError(f"{name} must be an integer, got {brief(value)}.")


def check_at_least(
  name: str, value: Any, least: int, most: int | None = None
) -> int:
  """An integer that is not too small.

  Args:
    name: What to call it in a message.
    value: What was given.
    least: That is allowed.
    most: That is allowed; None for any.

  Raises:
    ValueError: If it is no integer, or smaller, or larger.

  >>> check_at_least("max_running", 4, 1)
  4
  """
  whole = check_whole(name, value)
  if whole < least or (most is not None and whole > most):
    bound = "" if most is None else f" and at most {most}"
    raise ValueError(
      f"{name} is {brief(whole)}; it must be at least {least}{bound}."
    )
  return whole
