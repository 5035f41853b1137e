"""Reads a JSON object that somebody else wrote."""

import json
import pathlib
from typing import Any

from sparse_prefix_jax.models.families.fields import shown

_DEEPEST = 64


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON object that a file holds.

  Args:
    path: The file.

  Returns:
    Its values by key.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it cannot be read, or holds something else.
  """
  if path.is_dir():
    raise ValueError(f"{path} is a folder; it must be a file.")
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  try:
    content = path.read_bytes()
  except OSError as error:
    raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
  return parse_json_object(content, str(path))


def parse_json_object(content: bytes, where: str) -> dict[str, Any]:
  """Parses a JSON object, and refuses one that holds a key twice.

  Args:
    content: UTF-8.
    where: What sentences call it.

  Raises:
    ValueError: If it is no JSON, too deeply nested, or no object.

  Example:
    >>> parse_json_object(b'{"a": 1, "a": 2}', "config.json")
    Traceback (most recent call last):
    ValueError: config.json is not JSON: the key 'a' stands there twice.
  """
  try:
    value = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
  except RecursionError as error:
    raise ValueError(f"{where} is not JSON: it is nested too deep.") from error
  except ValueError as error:
    reason = str(error).rstrip(".")
    raise ValueError(f"{where} is not JSON: {reason}.") from error
  if not isinstance(value, dict):
    raise ValueError(f"{where} holds no JSON object.")
  if _is_deep(value):
    raise ValueError(f"{where} is not JSON: it is nested too deep.")
  return value


def _is_deep(value: Any) -> bool:
  """Whether comparing or showing a value could exhaust the stack."""
  level = [value]
  for _ in range(_DEEPEST):
    level = [
      inner
      for each in level
      if isinstance(each, dict | list)
      for inner in (each.values() if isinstance(each, dict) else each)
    ]
  return bool(level)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes an object; of two values of one key, readers take either."""
  values: dict[str, Any] = {}
  for key, value in pairs:
    if key in values:
      raise ValueError(f"the key {shown(key)} stands there twice")
    values[key] = value
  return values
