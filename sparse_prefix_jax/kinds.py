"""What kind of object a user gives: refused by name, with where to get one."""

import errno
import os
import pathlib
import reprlib
from typing import Any

import numpy as np


def brief(value: Any) -> str:
  """A value on a few characters of one line, for a message.

  Args:
    value: What was given.

  >>> brief("x" * 99), brief(10**5000)
  ("'xxxxxxxxxxxx...xxxxxxxxxxxxx'", 'an integer of thousands of digits')
  """
  try:
    return " ".join(reprlib.repr(value).split())
  except ValueError:  # Python prints no more of them.
    return "an integer of thousands of digits"


def check_flag(name: str, value: Any) -> None:
  """Refuses what is neither True nor False.

  Args:
    name: What to call it in a message.
    value: What was given.

  Raises:
    ValueError: If it is anything else; NumPy's own are no bools.

  >>> check_flag("overlap", None)
  Traceback (most recent call last):
  ValueError: overlap must be True or False, got None.
  """
  if not isinstance(value, bool):
    raise ValueError(f"{name} must be True or False, got {brief(value)}.")


def host_array(name: str, values: Any) -> np.ndarray:
  """An array of the host; what is none, or not all there, is refused.

  Args:
    name: What to call it in a message.
    values: What was given, of any type of numbers or of none.

  Raises:
    ValueError: If rows are of several lengths, values are masked, or JAX has
      them yet to compute.

  >>> host_array("cost", [[1], [2, 3]])
  Traceback (most recent call last):
  ValueError: cost is [[1], [2, 3]]; it must be an array of numbers.
  """
  if not isinstance(values, np.ma.MaskedArray):
    try:
      return np.asarray(values)
    except (TypeError, ValueError):
      pass
  raise ValueError(
    f"{name} is {brief(values)}; it must be an array of numbers."
  )


def check_class(name: str, value: Any, kind: type, source: str = "") -> None:
  """Refuses what is no object of a class.

  Args:
    name: What to call it in a message.
    value: What was given.
    kind: The class.
    source: Where one comes from.

  Raises:
    ValueError: If it is of another class.

  >>> check_class("trace", [1, 2], dict, "of `load_token_file`")
  Traceback (most recent call last):
  ValueError: trace is [1, 2]; it must be a dict, of `load_token_file`.
  """
  if isinstance(value, kind):
    return
  where = source and f", {source}"
  raise ValueError(
    f"{name} is {brief(value)}; it must be a {kind.__name__}{where}."
  )


def path_of(
  name: str, value: str | os.PathLike[str], what: str = "file"
) -> pathlib.Path:
  """Returns a path; what names none is refused.

  Args:
    name: What to call it in a message.
    value: What was given.
    what: Of what it must be the path.

  Raises:
    ValueError: If it is no text and no path, or one that no file can have.

  >>> path_of("path", "a/b").name
  'b'
  """
  try:
    if isinstance(value, str | os.PathLike) and _can_be(value):
      return pathlib.Path(value)
  except TypeError:  # of bytes
    pass
  raise ValueError(
    f"{name} is {brief(value)}; it must be the path of a {what}."
  )


def _can_be(path: str | os.PathLike[str]) -> bool:
  """Whether a file can have that path, be there one or not."""
  try:
    os.lstat(path)
  except OSError as error:
    return error.errno != errno.ENAMETOOLONG
  except ValueError:  # It holds a zero, or half of a character.
    return False
  return True
