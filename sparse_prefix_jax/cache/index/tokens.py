"""Token ids as keys of the prefix tree: whole blocks of c tokens and a tail.

A key is the block's ids as big-endian int32 bytes. Comparing keys compares
token ids, so a match never rests on a hash; and bytes sort as the ids do, so
the longest common prefix with many keys is found by bisection.
"""

import bisect
from collections.abc import Hashable, Iterator, Sequence
from itertools import takewhile
from operator import eq
from typing import (
  Any,
  Protocol,
  SupportsIndex,
  TypeAlias,
  overload,
  runtime_checkable,
)

import numpy as np


@runtime_checkable
class SupportsArray(Protocol):
  """An array of NumPy, of JAX, or of anybody else that NumPy can read."""

  def __array__(self) -> Any:
    """The values as a NumPy array."""


TokenIds: TypeAlias = Sequence[SupportsIndex] | SupportsArray

BYTES_PER_TOKEN = 4
_LARGEST_ID = 2**31 - 1


# Keys that are compared at once: their bytes are joined where they stay close.
_AT_ONCE = 64


class TokenBlocks(Sequence[bytes]):
  """Keys of the whole blocks of a prompt, cut when somebody asks for them.

  Nearly all keys of a long prompt are those of a tree already: they are
  compared, and then the tree's are kept.

  >>> blocks = TokenBlocks(b"aaaabbbbcccc", 4)
  >>> blocks[1], blocks[1:], blocks.common([b"aaaa", b"bbbx"], 0)
  (b'bbbb', (b'bbbb', b'cccc'), 1)
  """

  def __init__(self, packed: bytes | bytearray, width: int) -> None:
    """Cuts nothing yet.

    Args:
      packed: All keys behind each other, to be changed by nobody.
      width: Bytes of each.
    """
    self.width, self._packed = width, packed
    self._cut: dict[int, bytes] = {}

  def __len__(self) -> int:
    """How many blocks there are."""
    return len(self._packed) // self.width

  @overload
  def __getitem__(self, place: int) -> bytes: ...

  @overload
  def __getitem__(self, place: slice) -> tuple[bytes, ...]: ...

  def __getitem__(self, place: int | slice) -> bytes | tuple[bytes, ...]:
    """A key, the same object every time; or a tuple of some."""
    if isinstance(place, slice):
      return tuple(map(self._key, range(*place.indices(len(self)))))
    return self._key(range(len(self))[place])

  def __iter__(self) -> Iterator[bytes]:
    """All keys in order."""
    return iter(self[:])

  def __eq__(self, other: object) -> bool:
    """Whether another sequence has the same keys."""
    return isinstance(other, Sequence) and self[:] == tuple(other)

  def __repr__(self) -> str:
    """Short enough for a message."""
    return f"TokenBlocks({len(self)} of {self.width} bytes)"

  def _key(self, number: int) -> bytes:
    """One key."""
    key = self._cut.get(number)
    if key is None:
      start = number * self.width
      key = bytes(self._packed[start : start + self.width])
      self._cut[number] = key
    return key

  def common(self, keys: Sequence[bytes], at: int) -> int:
    """How many leading ones of some keys are those from a block on.

    Args:
      keys: Each of `width` bytes, no more than there are blocks from there on.
      at: The number of the block.
    """
    for first in range(0, len(keys), _AT_ONCE):
      some = keys[first : first + _AT_ONCE]
      if not self._packed.startswith(b"".join(some), (at + first) * self.width):
        return first + _leading(some, self[at + first : at + first + len(some)])
    return len(keys)


def common_blocks(
  keys: Sequence[Hashable], blocks: Sequence[Hashable], at: int
) -> int:
  """How many leading keys are those of a prompt from a block on, any keys.

  Args:
    keys: Of some blocks behind each other.
    blocks: Of the prompt.
    at: The number of the block.

  >>> common_blocks([2, 3, 5], (1, 2, 3, 4), 1)
  2
  """
  for first in range(0, len(keys), _AT_ONCE):
    ours = [*keys[first : first + _AT_ONCE]]
    theirs = [*blocks[at + first : at + first + len(ours)]]
    if ours != theirs:
      return first + _leading(ours, theirs)
  return len(keys)


def _leading(keys: Sequence[Hashable], others: Sequence[Hashable]) -> int:
  """How many leading ones are equal."""
  return sum(1 for _ in takewhile(bool, map(eq, keys, others)))


def token_blocks(tokens: TokenIds, chunk: int) -> tuple[TokenBlocks, bytes]:
  """Cuts a prompt into the keys of its whole blocks and its tail.

  Args:
    tokens: ids [t], a sequence or an integer array; may be empty.
    chunk: tokens of a block, c.

  Returns:
    `(blocks, tail)`: floor(t / c) keys of 4 c bytes each, and the bytes of the
    t mod c tokens that are left.

  Raises:
    ValueError: tokens are not one-dimensional integers in [0, 2**31), or chunk
      is not positive.

  >>> blocks, tail = token_blocks([1, 2, 3, 4, 5], chunk=2)
  >>> len(blocks), len(tail) // 4
  (2, 1)
  """
  if chunk < 1:
    raise ValueError(f"chunk must be at least 1 token, got {chunk}.")
  ids = _checked_ids(tokens)
  whole = ids.size // chunk * chunk
  packed = bytearray(BYTES_PER_TOKEN * whole)
  np.frombuffer(packed, ">i4")[:] = ids[:whole]
  blocks = TokenBlocks(packed, BYTES_PER_TOKEN * chunk)
  return blocks, ids[whole:].astype(">i4").tobytes()


def _checked_ids(tokens: TokenIds) -> np.ndarray:
  """Returns the ids as an array [t] that int32 can hold, or raises."""
  ids = np.asarray(tokens)
  if ids.ndim != 1:
    raise ValueError(
      f"tokens must have one dimension, got an array of shape {ids.shape}."
    )
  if ids.size == 0:  # An empty list is an array of floats.
    return ids.astype(np.int32)
  if not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f"tokens must be integers, got dtype {ids.dtype}.")
  if ids.min() < 0 or ids.max() > _LARGEST_ID:
    raise ValueError(
      f"tokens must lie in [0, {_LARGEST_ID}], got ids from {ids.min()} to "
      f"{ids.max()}."
    )
  return ids


def common_tokens(left: bytes, right: bytes) -> int:
  """Length in tokens of the longest common prefix, by bisection.

  >>> common_tokens(bytes(8) + b"abcd", bytes(8) + b"abcx")
  2
  """
  low, high = 0, min(len(left), len(right)) // BYTES_PER_TOKEN
  while low < high:
    middle = (low + high + 1) // 2
    end = BYTES_PER_TOKEN * middle
    if left[:end] == right[:end]:
      low = middle
    else:
      high = middle - 1
  return low


def longest_common_tokens(ordered: Sequence[bytes], query: bytes) -> int:
  """Longest common prefix, in tokens, of a key with any of many sorted keys.

  The best partner of a key is one of its two neighbours in sorted order, so
  this costs O(log n) comparisons for n keys.

  >>> longest_common_tokens([b"aaaabbbb", b"aaaacccc"], b"aaaabbzz")
  1
  """
  place = bisect.bisect_left(ordered, query)
  near = ordered[max(place - 1, 0) : place + 1]
  return max((common_tokens(key, query) for key in near), default=0)
