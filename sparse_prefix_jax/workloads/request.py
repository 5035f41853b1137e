"""What every loader yields: requests as arrays of ids, in an order."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Request:
  """One prompt.

  Attributes:
    ids: int32 [t]. Token ids; in a trace of hashed blocks one id per block,
      and two requests share a prefix exactly as long as their ids agree.
    length: prompt length in tokens; a trailing partial block has no id.
    group: requests of one group may share a prefix (a document, a system
      prompt); requests of different groups are not compared by the paper.
    index: number of the request in its file, from 0.
    arrival: seconds after the first request, 0 where the file has no times.
  """

  ids: np.ndarray
  length: int
  group: int = 0
  index: int = 0
  arrival: float = 0.0

  @property
  def tokens(self) -> np.ndarray:
    """The ids, under the name they have in a stream of token ids."""
    return self.ids


@dataclass(frozen=True, eq=False)
class Trace:
  """A request stream.

  Attributes:
    name: where it came from, for reports.
    requests: in the order in which they are served.
    block: tokens per id; 1 for token ids.
  """

  name: str
  requests: tuple[Request, ...]
  block: int = 1

  def __len__(self) -> int:
    """Number of requests."""
    return len(self.requests)

  @property
  def longest(self) -> int:
    """Tokens of the longest prompt."""
    return max(request.length for request in self.requests)


def check_ids(where: str, ids: np.ndarray) -> None:
  """Raises ValueError for token ids that int32 would wrap, or below 0."""
  bad = (ids < 0) | (ids > np.iinfo(np.int32).max)
  if np.any(bad):
    raise ValueError(
      f"{where}: token ids must be in [0, 2**31), got {ids[np.argmax(bad)]}"
    )


def token_trace(
  name: str, rows: Sequence[np.ndarray], groups: Sequence[int]
) -> Trace:
  """A trace of token ids from rows and their groups.

  Args:
    name: for reports.
    rows: integer arrays [t].
    groups: one group per row.

  Raises:
    ValueError: there is no row, a row is empty, or an id is no int32 >= 0.

  >>> len(token_trace("two", [np.array([1, 2]), np.array([1])], [0, 0]))
  2
  """
  if not rows:
    raise ValueError(f"{name} has no requests")
  empty = [index for index, row in enumerate(rows) if len(row) == 0]
  if empty:
    raise ValueError(f"{name}: request {empty[0]} has no tokens")
  for index, row in enumerate(rows):
    check_ids(f"{name}: request {index}", row)
  requests = [
    Request(
      ids=np.ascontiguousarray(row, np.int32),
      length=len(row),
      group=int(group),
      index=index,
    )
    for index, (row, group) in enumerate(zip(rows, groups, strict=True))
  ]
  return Trace(name=name, requests=tuple(requests))


def reordered(trace: Trace, order: Sequence[int]) -> Trace:
  """The same requests, served in the order given by positions in the trace."""
  requests = tuple(trace.requests[index] for index in order)
  return dataclasses.replace(trace, requests=requests)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
  """Number of leading ids that are equal.

  >>> common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
  2
  """
  shorter = min(len(a), len(b))
  differs = a[:shorter] != b[:shorter]
  first = int(np.argmax(differs)) if shorter else 0
  return first if shorter and differs[first] else shorter
