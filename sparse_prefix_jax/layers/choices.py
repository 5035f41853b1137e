"""The checks that every frozen configuration makes of its own fields."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from sparse_prefix_jax.kinds import brief

MOST = 2**30
"""No count is larger: ids and positions are int32, with room to add chunks."""


def is_int(value: Any) -> TypeGuard[int]:
  """Whether `value` is an int, and not a bool, a float or of NumPy.

  Integers of NumPy are refused since those of 32 bits overflow in products of
  sizes, which Python's do not.

  Example:
    >>> is_int(64), is_int(64.0), is_int(True)
    (True, False, False)
  """
  return isinstance(value, int) and not isinstance(value, bool)


def is_positive(value: Any) -> TypeGuard[float]:
  """Whether `value` is a finite number above 0, an int or a float.

  With an epsilon of 0 a norm of zeros is not a number; a base of 0 or below has
  no real powers.

  Example:
    >>> is_positive(1e-6), is_positive(float("nan")), is_positive("1")
    (True, False, False)
  """
  number = is_int(value) or isinstance(value, float)
  # Compared, not converted: an int of 400 digits is above every float.
  return number and 0 < value <= sys.float_info.max


def check_values(choices: Any, least: Mapping[str, int] | None = None) -> None:
  """Refuses what only looks like a value: 64.0 rows, lists, "false".

  Nobody checks annotations outside the tests, and a list would be found only
  where the configuration is hashed, a static argument of the first program.

  Args:
    choices: A dataclass. Looked at are its fields that are annotated as int, a
      count of at most `MOST`; as float, above 0; as bool, str or a tuple.
    least: The smallest value of a count, where that is not 1.

  Raises:
    ValueError: Naming the field, its value and what is allowed.

  Example:
    >>> @dataclasses.dataclass(frozen=True)
    ... class Scan:
    ...   heads: int
    >>> check_values(Scan(heads=0))
    Traceback (most recent call last):
    ValueError: heads is 0; it must be at least 1 and at most 1073741824.
  """
  for field in dataclasses.fields(choices):
    value = getattr(choices, field.name)
    fits, allowed = _fits(field.type, value)
    if not fits:
      raise ValueError(f"{field.name} is {brief(value)}; it must be {allowed}.")
  for field in dataclasses.fields(choices):
    value, low = getattr(choices, field.name), (least or {}).get(field.name, 1)
    if field.type is int and not low <= value <= MOST:
      raise ValueError(
        f"{field.name} is {brief(value)}; it must be at least {low} and at "
        f"most {MOST}."
      )


def _fits(annotation: Any, value: Any) -> tuple[bool, str]:
  """Whether a value is of the annotated type, and what is."""
  if annotation is int:
    return is_int(value), "an int"
  if annotation is float:
    return is_positive(value), "a finite number above 0"
  if annotation is bool:
    return isinstance(value, bool), "True or False"
  if annotation is str:
    return isinstance(value, str), "a string"
  if getattr(annotation, "__origin__", None) is tuple:
    return isinstance(value, tuple), "a tuple"
  return True, ""


def check_multiple(choices: Any, many: str, one: str) -> None:
  """Refuses heads that cannot be shared evenly.

  Args:
    choices: A dataclass.
    many: The field that must be a multiple.
    one: The field of which.

  Raises:
    ValueError: If it is none.
  """
  if getattr(choices, many) % getattr(choices, one):
    raise ValueError(
      f"{many} is {getattr(choices, many)}; it must be a multiple of "
      f"{one} = {getattr(choices, one)}."
    )


def check_names(choices: Any, allowed: Mapping[str, tuple[str, ...]]) -> None:
  """Refuses names that are not known.

  Args:
    choices: A dataclass.
    allowed: The names that a field may hold, by the field.

  Raises:
    ValueError: Naming the field, its value and the names.
  """
  for name, known in allowed.items():
    if getattr(choices, name) not in known:
      raise ValueError(
        f"{name} is {brief(getattr(choices, name))}; it must be one of "
        f"{', '.join(known)}."
      )
