"""What counts as a whole number where a user gives one."""

import numbers
from typing import Any, TypeGuard


def is_whole(value: Any) -> TypeGuard[numbers.Integral]:
  """Whether it is an integer, of Python or of NumPy; a bool is none.

  Example:
    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
  """
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)
