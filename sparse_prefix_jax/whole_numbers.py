"""What counts as a whole number where a user gives one."""

import numbers
from typing import Any, TypeGuard

import numpy as np

# NumPy counts durations as signed integers; Python does so with bools.
_NO_NUMBERS = (bool, np.timedelta64)


def is_whole(value: Any) -> TypeGuard[numbers.Integral]:
  """Whether it is an integer, of Python or of NumPy; a bool is none.

  Example:
    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
  """
  return isinstance(value, numbers.Integral) and is_real(value)


def is_real(value: Any) -> TypeGuard[numbers.Real]:
  """Whether it is a real number, of Python or of NumPy; a bool is none.

  Example:
    >>> is_real(3), is_real(np.float32(3.5)), is_real(np.timedelta64(3, "s"))
    (True, True, False)
  """
  return isinstance(value, numbers.Real) and not isinstance(value, _NO_NUMBERS)
