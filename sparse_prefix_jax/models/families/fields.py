"""Fields of a foreign JSON object: one sentence for each that is wrong."""

import math
import reprlib
from collections.abc import Container, Mapping
from typing import Any

from sparse_prefix_jax.layers.choices import is_int

MOST_COUNT = 2**20
"""The largest count that is believed: widths, heads, layers of any model."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlevel = 3


def shown(value: Any) -> str:
  """Shortens what a foreign file says, so that a sentence stays one.

  Line breaks and characters that cannot be printed are escaped; what is deeply
  nested or long is cut.

  Args:
    value: Anything that JSON holds.

  Returns:
    Its `repr`, or the beginning of it.

  Example:
    >>> shown([[[[1]]]])
    '[[[...]]]'
  """
  return _REPR.repr(value)


class Fields:
  """One JSON object, read field by field; it records what was read.

  Whoever reads names each key that matters. What is left over at the end must
  be on a list of the harmless: a key that changes the logits is never passed
  over in silence.

  Attributes:
    values: The object.
    where: What sentences call it, for example the path of its file.

  Example:
    >>> fields = Fields({"heads": 4, "scale": 2.0}, "config.json")
    >>> fields.count("heads")
    4
    >>> fields.refuse_unread(harmless=())
    Traceback (most recent call last):
    ValueError: scale in config.json is 2.0; this key is not known here, ...
  """

  def __init__(self, values: Mapping[str, Any], where: str) -> None:
    self.values = values
    self.where = where
    self._read: set[str] = set()

  def get(self, key: str) -> Any:
    """Returns the value of a key, or None where it is absent or null."""
    self._read.add(key)
    return self.values.get(key)

  def error(self, key: str, allowed: str) -> ValueError:
    """Makes the sentence for a value: where it stands, and what is allowed."""
    value = shown(self.values.get(key))
    return ValueError(f"{key} in {self.where} is {value}; {allowed}.")

  def count(
    self, key: str, default: int | None = None, *, most: int = MOST_COUNT
  ) -> int:
    """Reads an int above 0.

    Args:
      key: Its name.
      default: What holds where it is absent or null; None if it is needed.
      most: The largest that is allowed.

    Raises:
      ValueError: If it is missing, or no int from 1 to `most`.
    """
    value = self._needed(key, default)
    if not is_int(value) or value < 1:
      raise self.error(key, "it must be an int above 0")
    if value > most:
      raise self.error(key, f"it must be at most {most}")
    return value

  def number(
    self, key: str, default: float | None = None, *, least: float, most: float
  ) -> float:
    """Reads a finite number.

    Args:
      key: Its name.
      default: What holds where it is absent or null; None if it is needed.
      least: The smallest that is allowed; above 0.
      most: The largest that is allowed.

    Raises:
      ValueError: If it is missing or out of this range.
    """
    value = self._needed(key, default)
    number = is_int(value) or isinstance(value, float)
    # Comparisons of ints are exact where a conversion to float would overflow.
    if not number or not 0 < value < math.inf:
      raise self.error(key, "it must be a finite number above 0")
    if not least <= value <= most:
      raise self.error(
        key, f"it must be at least {least:g} and at most {most:g}"
      )
    return float(value)

  def flag(self, key: str, default: bool) -> bool:
    """Reads true or false, or takes the default where it is absent.

    Null is false: where transformers takes it, it asks whether it is true.
    """
    value = self.get(key)
    if value is None:
      return default and key not in self.values
    if not isinstance(value, bool):
      raise self.error(key, "it must be true or false")
    return value

  def only(self, key: str, *allowed: Any) -> None:
    """Refuses every value but these, absence and null.

    `False` is not 0 here, nor `True` 1.
    """
    value = self.get(key)
    known = [(type(x), x) for x in allowed]
    if value is not None and (type(value), value) not in known:
      names = " or ".join(map(repr, allowed)) or "null"
      raise self.error(key, f"only {names} can be computed")

  def texts(self, key: str) -> list[str] | None:
    """Reads a list of strings, or None where it is absent or null."""
    value = self.get(key)
    if value is None:
      return None
    if not isinstance(value, list) or not all(
      isinstance(item, str) for item in value
    ):
      raise self.error(key, "it must be a list of strings")
    return value

  def ids(self, key: str) -> tuple[int, ...]:
    """Reads token ids: none, one, or a list of them.

    Raises:
      ValueError: If one is no int from 0 to 2**30.
    """
    value = self.get(key)
    if value is None:
      return ()
    several = value if isinstance(value, list) else [value]
    if not all(is_int(item) and 0 <= item <= 2**30 for item in several):
      raise self.error(key, "it must be a token id or a list of them")
    return tuple(dict.fromkeys(several))

  def within(self, key: str) -> "Fields | None":
    """Reads an object inside this one, or None where it is absent or null."""
    value = self.get(key)
    if value is None:
      return None
    if not isinstance(value, dict):
      raise self.error(key, "it must be an object or null")
    return Fields(value, f"{key} in {self.where}")

  def refuse_unread(
    self, harmless: Container[str], same: Mapping[str, Any] | None = None
  ) -> None:
    """Refuses keys that nobody has read.

    Null, an empty list and an empty object say nothing, whatever their key.

    Args:
      harmless: Keys that change no logits.
      same: Another object: a key that it holds with an equal value is a
        repetition, and read there.

    Raises:
      ValueError: Naming the first of the others.
    """
    for key, value in self.values.items():
      silent = value is None or value == [] or value == {}
      if silent or key in self._read or key in harmless:
        continue
      if same is not None and key in same and same[key] == value:
        continue
      name = key if key.isidentifier() else shown(key)
      raise ValueError(
        f"{name} in {self.where} is {shown(value)}; this key is not known "
        "here, and what it changes would be ignored."
      )

  def _needed(self, key: str, default: Any) -> Any:
    """The value or its default.

    Raises:
      ValueError: If there is neither.
    """
    if default is None and key not in self.values:
      raise ValueError(f"{self.where} lacks {key}.")
    value = self.get(key)
    return default if value is None else value
