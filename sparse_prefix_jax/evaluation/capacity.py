"""How much a simulated cache may hold: sequences, states or bytes."""

import math
import re
import reprlib
from dataclasses import dataclass
from fractions import Fraction

_UNITS = {"": 1}
for _power, _letter in enumerate("KMGT", start=1):
  _UNITS[_letter + "B"] = 1000**_power
  _UNITS[_letter + "iB"] = 1024**_power
_UNITS["B"] = 1

KINDS = ("sequences", "states", "bytes")
"""Kinds of capacity: entries of the last N requests (the paper's), K states in
all with keys and values free, or bytes of both."""


@dataclass(frozen=True)
class Capacity:
  """How much may be held.

  Attributes:
    kind: one of `KINDS`.
    amount: sequences, states or bytes; at least 1.

  Raises:
    ValueError: unknown kind, or an amount below 1.
  """

  kind: str
  amount: int

  def __post_init__(self) -> None:
    """Checks both fields."""
    if self.kind not in KINDS:
      raise ValueError(
        f"capacity must be of {', '.join(KINDS)}, got {self.kind!r}"
      )
    if self.amount < 1:
      raise ValueError(
        f"capacity must be at least 1 of {self.kind}, got {self.amount}"
      )

  def __str__(self) -> str:
    """As on the command line."""
    return f"{self.kind}:{self.amount}"


def parse_capacity(text: str) -> Capacity:
  """Reads a capacity as on the command line.

  Args:
    text: "sequences:20", "states:1024" or "bytes:4GiB" (bytes also in B, KB,
      MB, GB, TB, KiB, MiB and TiB; fractions allowed, rounded down). Numbers
      have at most 18 digits on either side of the point.

  Returns:
    The capacity.

  Raises:
    ValueError: anything else.

  >>> parse_capacity("bytes:0.5KiB")
  Capacity(kind='bytes', amount=512)
  """
  match = re.fullmatch(r"(\w+):(\d{1,18}(?:\.\d{1,18})?)\s*(\w*)", text)
  if match:
    kind, number, unit = match.groups()
    scale = _UNITS.get(unit) if kind == "bytes" else (1 if not unit else None)
    whole = kind == "bytes" or "." not in number
    if scale is not None and whole:
      return Capacity(kind, math.floor(Fraction(number) * scale))
  raise ValueError(
    "capacity must be sequences:N, states:K or bytes:SIZE (4GiB, say), of at"
    f" most 18 digits, got {reprlib.repr(text)}"
  )
