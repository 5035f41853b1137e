"""Sizes in bytes, as people write them: "4GiB", "1.5MB" or a whole number."""

import re
from fractions import Fraction
from numbers import Rational
from typing import Any

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.whole_numbers import is_real, is_whole

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
  _UNITS[_letter + "B"] = 1000**_power
  _UNITS[_letter + "iB"] = 1024**_power

# ASCII digits only, and few enough that no number becomes enormous.
_TEXT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]*)")

# What a signed 64-bit integer holds; no machine has as many bytes.
_MOST = 2**63 - 1


def parse_bytes(
  size: str | int | float, *, name: str = "size", least: int = 1
) -> int:
  """Reads a size in bytes.

  Args:
    size: a text such as "4GiB", with a unit of B, KB, MB, GB, TB (powers of
      1,000), KiB, MiB, GiB or TiB (powers of 1,024), or without a unit for
      bytes; fractions are allowed and are rounded down to whole bytes. Or a
      number of bytes: an integer, or a float that is a whole number.
    name: what the size is called in the sentence of a refusal.
    least: the fewest bytes that are allowed.

  Returns:
    The number of bytes, from `least` to 2**63 - 1.

  Raises:
    ValueError: the size is anything else.

  >>> parse_bytes("4GiB"), parse_bytes("1.5 MB"), parse_bytes(512)
  (4294967296, 1500000, 512)
  """
  amount = _from_text(size) if isinstance(size, str) else _from_number(size)
  if amount is None or not least <= amount <= _MOST:
    raise ValueError(
      f"{name} must be a whole number of bytes, at least {least} and below"
      f" 2**63, or a text such as '4GiB', '1.5MB' or '800B', got {brief(size)}"
    )
  return amount


def readable_bytes(size: int) -> str:
  """Writes bytes in the largest binary unit that leaves at least one of it.

  Args:
    size: A number of bytes.

  >>> readable_bytes(512), readable_bytes(24 << 30)
  ('512 B', '24.0 GiB')
  """
  for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
    if size >= 1 << power:
      return f"{size / (1 << power):.1f} {unit}"
  return f"{size} B"


def _from_text(text: str) -> int | None:
  """The bytes that a text names, or None where it is no size."""
  match = _TEXT.fullmatch(text.strip(" "))
  if match is None or match[2] not in _UNITS:
    return None
  # A float would round large sizes, and 0.3 to another number.
  return int(Fraction(match[1]) * _UNITS[match[2]])


def _from_number(number: Any) -> int | None:
  """A whole number as an int, or None; True and 1.5 are no numbers of bytes."""
  if is_whole(number):
    return int(number)
  # Nobody counts bytes in fractions, and `float` of one may overflow.
  if not is_real(number) or isinstance(number, Rational):
    return None
  floating = float(number)
  return int(floating) if floating.is_integer() else None
