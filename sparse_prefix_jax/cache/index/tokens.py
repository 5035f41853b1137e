"""Token ids as keys of the prefix tree: whole blocks of c tokens and a tail.

A key is the block's ids as big-endian int32 bytes. Comparing keys compares
token ids, so a match never rests on a hash; and bytes sort as the ids do, so
the longest common prefix with many keys is found by bisection.
"""

import bisect
from collections.abc import Sequence
from typing import Any, Protocol, SupportsIndex, TypeAlias, runtime_checkable

import numpy as np


@runtime_checkable
class SupportsArray(Protocol):
  """An array of NumPy, of JAX, or of anybody else that NumPy can read."""

  def __array__(self) -> Any:
    """The values as a NumPy array."""


TokenIds: TypeAlias = Sequence[SupportsIndex] | SupportsArray

BYTES_PER_TOKEN = 4
_LARGEST_ID = 2**31 - 1


def token_blocks(
  tokens: TokenIds, chunk: int
) -> tuple[tuple[bytes, ...], bytes]:
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
  data = _checked_ids(tokens).astype(">i4")
  whole = data.size // chunk * chunk
  # NumPy cuts all of them at once: an item of a void type is its bytes.
  keys = data[:whole].view(f"V{BYTES_PER_TOKEN * chunk}").tolist()
  return tuple(keys), data[whole:].tobytes()


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
