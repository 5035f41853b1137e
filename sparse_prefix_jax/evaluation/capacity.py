"""How much a simulated cache may hold: sequences, states or bytes."""

import re
from dataclasses import dataclass

from sparse_prefix_jax.byte_sizes import parse_bytes
from sparse_prefix_jax.cache.index import EVICTIONS, Eviction
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.whole_numbers import is_whole

KINDS = ("sequences", "states", "bytes")
"""The kinds of capacity: "sequences" holds the entries of the last N requests
(the paper's rule), "states" holds K states in all while keys and values are
free, and "bytes" counts states as well as keys and values."""

# The rules of the paper and of the anchors are two queues, written out there; a
# store has whatever rules an index has.
_QUEUES = ("fifo", "lru")

# ASCII digits, few enough that no number becomes enormous.
_COUNT = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Capacity:
  """How much a simulated cache may hold.

  Attributes:
    kind: What is counted, one of `KINDS`.
    amount: How many sequences, states or bytes; at least 1.

  Raises:
    ValueError: If the kind is unknown, or the amount no integer from 1.

  >>> Capacity("bytes", 4096)
  Capacity(kind='bytes', amount=4096)
  """

  kind: str
  amount: int

  def __post_init__(self) -> None:
    """Checks both fields."""
    if not isinstance(self.kind, str) or self.kind not in KINDS:
      raise ValueError(
        f"capacity must be of {', '.join(KINDS)}, got {brief(self.kind)}"
      )
    if not is_whole(self.amount) or self.amount < 1:
      raise ValueError(
        f"capacity must be an integer of at least 1 of {self.kind}, got"
        f" {brief(self.amount)}"
      )

  def __str__(self) -> str:
    """Returns the capacity as it stands on the command line."""
    return f"{self.kind}:{self.amount}"


def check_eviction(kind: str, eviction: Eviction) -> None:
  """Refuses a rule of eviction that a kind of capacity does not have.

  Placement `adaptive` has one of its own, which is not asked for here.

  Args:
    kind: One of `KINDS`.
    eviction: A key of `EVICTIONS`; of a store, also what makes a rule.

  Raises:
    ValueError: If it is no name of a rule of that kind.

  >>> check_eviction("states", "marconi")
  Traceback (most recent call last):
  ValueError: eviction must be one of fifo, lru, got 'marconi'; bytes have more
  """
  known = tuple(EVICTIONS) if kind == "bytes" else _QUEUES
  own = kind == "bytes" and callable(eviction)
  named = isinstance(eviction, str) and eviction in known
  if not own and not named:
    raise ValueError(
      f"eviction must be one of {', '.join(known)}, got {brief(eviction)}"
      + ("" if kind == "bytes" else "; bytes have more")
    )


def parse_capacity(text: str) -> Capacity:
  """Reads a capacity as it stands on the command line.

  Args:
    text: Such as "sequences:20", "states:1024" or "bytes:4GiB". Sequences and
      states are counted, with at most 18 digits; bytes are a size as
      `parse_bytes` reads it.

  Returns:
    The capacity.

  Raises:
    ValueError: If the text is anything else.

  >>> parse_capacity("bytes:0.5KiB")
  Capacity(kind='bytes', amount=512)
  """
  kind, _, amount = text.partition(":") if isinstance(text, str) else ("",) * 3
  if kind == "bytes":
    return Capacity(kind, parse_bytes(amount, name="capacity in bytes"))
  if kind in KINDS and _COUNT.fullmatch(amount):
    return Capacity(kind, int(amount))
  raise ValueError(
    "capacity must be sequences:N, states:K or bytes:SIZE (4GiB, say), with N"
    f" and K of at most 18 digits, got {brief(text)}"
  )
