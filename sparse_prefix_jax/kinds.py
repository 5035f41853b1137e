"""What kind of object a user gives: refused by name, with where to get one."""

import os
import pathlib
import reprlib
from typing import Any


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
  shown = " ".join(reprlib.repr(value).split())
  where = source and f", {source}"
  raise ValueError(f"{name} is {shown}; it must be a {kind.__name__}{where}.")


def path_of(name: str, value: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path; what names none is refused.

  Args:
    name: What to call it in a message.
    value: What was given.

  Raises:
    ValueError: If it is no text and no path, or one that no file can have.

  >>> path_of("path", "a/b").name
  'b'
  """
  try:
    if isinstance(value, str | os.PathLike) and b"\0" not in os.fsencode(value):
      return pathlib.Path(value)
  except (TypeError, UnicodeError):  # of bytes, or half of a character
    pass
  shown = " ".join(reprlib.repr(value).split())
  raise ValueError(f"{name} is {shown}; it must be the path of a file.")
