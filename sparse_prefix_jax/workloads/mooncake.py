"""Mooncake traces: one JSON object per request, prompts as hashed blocks.

Fields: `timestamp` (ms), `input_length`, `output_length` (tokens) and
`hash_ids`, one per block; requests share a prefix exactly as long as their
leading ids agree. A trailing partial block is neither matched nor stored.
"""

import re
import reprlib
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from sparse_prefix_jax.workloads.lines import json_lines
from sparse_prefix_jax.workloads.request import Request, Trace

DEFAULT_BLOCK = 512

# Milliseconds since 1970 are about 2e12; float64 counts them exactly to 9e15.
_LATEST = 1e15


def block_size_of(path: str | Path, block_size: int | None = None) -> int:
  """Tokens per block: from `.b16.` in the name, else given, else 512.

  Raises:
    ValueError: the name and `block_size` contradict each other, or the size is
      below 1.

  >>> block_size_of("trace.b16.jsonl.xz"), block_size_of("trace.jsonl", 64)
  (16, 64)
  """
  if block_size is not None and block_size < 1:
    raise ValueError(f"block_size must be at least 1, got {block_size}")
  named = re.search(r"\.b(\d+)\.", Path(path).name)
  if named is None:
    return DEFAULT_BLOCK if block_size is None else block_size
  size = int(named.group(1))
  if size < 1:
    raise ValueError(f"{Path(path).name} names blocks of 0 tokens")
  if block_size not in (None, size):
    raise ValueError(
      f"block_size={block_size} contradicts {Path(path).name}, which has blocks"
      f" of {size} tokens"
    )
  return size


def _is_count(value: Any) -> TypeGuard[int]:
  """Whether a JSON value is an integer that is not negative."""
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(where: str, fields: dict[str, Any], block: int) -> None:
  """Raises ValueError with the line number for fields that cannot be used."""
  length, hashes = fields.get("input_length"), fields.get("hash_ids")
  if not _is_count(length) or length == 0:
    raise ValueError(
      f"{where}: input_length must be a positive integer, got"
      f" {reprlib.repr(length)}"
    )
  if not isinstance(hashes, list) or not all(map(_is_count, hashes)):
    raise ValueError(f"{where}: hash_ids must be a list of integers >= 0")
  if len(hashes) < length // block:
    raise ValueError(
      f"{where}: {reprlib.repr(length)} tokens are"
      f" {reprlib.repr(length // block)} whole blocks of {block}, but hash_ids"
      f" has {len(hashes)}"
    )
  time = fields.get("timestamp", 0)
  number = isinstance(time, int | float) and not isinstance(time, bool)
  # Python compares integers of any size with a float, and NaN with nothing.
  if not number or not -_LATEST <= time <= _LATEST:
    raise ValueError(
      f"{where}: timestamp must be a number of milliseconds within"
      f" +-{_LATEST:.0e}, got {reprlib.repr(time)}"
    )


def load_mooncake(path: str | Path, block_size: int | None = None) -> Trace:
  """Reads a Mooncake trace, in file order.

  Args:
    path: .jsonl, .jsonl.gz or .jsonl.xz.
    block_size: tokens per block, see `block_size_of`.

  Returns:
    A trace with one id per whole block; all requests are of one group.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a malformed or truncated file (with the line number), an empty
      one, or a contradictory block size.
  """
  path = Path(path)
  block = block_size_of(path, block_size)
  dense: dict[int, int] = {}  # hash ids of any size -> int32
  requests: list[Request] = []
  start = None
  for number, fields in json_lines(path):
    _check(f"{path.name}, line {number}", fields, block)
    length = fields["input_length"]
    hashes = fields["hash_ids"][: length // block]
    ids = [dense.setdefault(value, len(dense)) for value in hashes]
    time = fields.get("timestamp", 0) / 1000
    start = time if start is None else start
    requests.append(
      Request(
        ids=np.array(ids, np.int32),
        length=length,
        index=len(requests),
        arrival=time - start,
      )
    )
  if not requests:
    raise ValueError(f"{path.name} has no requests")
  return Trace(name=path.name, requests=tuple(requests), block=block)
