"""How many tokens a block of a hashed trace has: told by its name, or a flag.

A wrong size does not fail by itself: it cuts every prompt to another number of
blocks, and a replay then saves another share of the tokens. So the ids of every
request are counted.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.whole_numbers import is_whole

DEFAULT_BLOCK = 512
"""Tokens per block where neither name nor caller says it: those of Mooncake."""

_LARGEST = 2**31 - 1
_NAMED = re.compile(r"(?:\.b|[._-]blksz[._-]?)([0-9]+)(?=[._-])")
# What a trace may be suspected of: the sizes of all public ones are among them.
_USUAL = tuple(2**power for power in range(17))


class PromptSize(NamedTuple):
  """How long a prompt is, in tokens and in blocks.

  Attributes:
    tokens: Its tokens.
    ids: Its blocks, a trailing partial one counted or not.
  """

  tokens: int
  ids: int

  def fit(self, block: int) -> bool:
    """Tells whether the ids are those of blocks of `block` tokens."""
    return self.tokens // block <= self.ids <= -(-self.tokens // block)


def block_size_of(path: str | Path, block_size: int | None = None) -> int:
  """Tokens per block: as the name says, else as given, else 512.

  Args:
    path: a trace. `.b16.` and `_blksz_16` in its name tell the size.
    block_size: what the caller says, or None.

  Returns:
    The number of tokens per block.

  Raises:
    ValueError: the name and `block_size` contradict each other, the name says
      two sizes, or a size is no integer from 1 to 2**31 - 1.

  >>> block_size_of("trace.b16.jsonl.xz"), block_size_of("trace.jsonl", 64)
  (16, 64)
  >>> block_size_of("qwen_traceA_blksz_16.jsonl")
  16
  """
  name = Path(path).name
  if block_size is not None:
    if not is_whole(block_size):
      raise ValueError(
        f"block_size must be an integer, got {brief(block_size)}"
      )
    _check_range("block_size", int(block_size))
  named = sorted({int(size) for size in _NAMED.findall(name)})
  if len(named) > 1:
    raise ValueError(f"{name} names several block sizes: {named}")
  if not named:
    return DEFAULT_BLOCK if block_size is None else int(block_size)
  _check_range(f"the block size in the name {name}", named[0])
  if block_size not in (None, named[0]):
    raise ValueError(
      f"block_size={block_size} contradicts {name}, which has blocks of"
      f" {named[0]} tokens"
    )
  return named[0]


def _check_range(what: str, size: int) -> None:
  """Raises ValueError for a size that no block can have."""
  if not 1 <= size <= _LARGEST:
    raise ValueError(
      f"{what} must be at least 1 and at most {_LARGEST}, got {brief(size)}"
    )


def misfit(sizes: PromptSize, block: int) -> str:
  """Says how the ids of a request contradict the size of a block.

  Args:
    sizes: A request that does not fit.
    block: Tokens per block.

  Returns:
    A sentence without its subject, the line.

  >>> misfit(PromptSize(tokens=521, ids=33), 512)
  '521 tokens are at most 2 blocks of 512, but hash_ids has 33'
  """
  whole, most = sizes.tokens // block, -(-sizes.tokens // block)
  blocks = f"at most {brief(most)}"
  if sizes.ids < whole:
    blocks = f"{brief(whole)} whole"
  return (
    f"{brief(sizes.tokens)} tokens are {blocks} blocks of {block}, but"
    f" hash_ids has {sizes.ids}"
  )


def better_block(requests: Sequence[PromptSize], block: int) -> str | None:
  """Says which usual block size fits more requests than the one assumed.

  Args:
    requests: All requests of a trace.
    block: Tokens per block, as assumed.

  Returns:
    A sentence, or None where no power of two up to 65,536 fits more: the trace
    is damaged then, and its block size may be right.

  >>> better_block([PromptSize(521, 33), PromptSize(7, 1)], 512)
  'block_size=16 would fit all 2 lines'
  """

  def fitting(block: int) -> int:
    return sum(request.fit(block) for request in requests)

  best = max(_USUAL, key=fitting)
  found = fitting(best)
  if found <= fitting(block):
    return None
  lines = f"{found} of" if found < len(requests) else "all"
  return f"block_size={best} would fit {lines} {len(requests)} lines"
