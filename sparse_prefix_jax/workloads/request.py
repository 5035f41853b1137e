"""What every loader yields: requests as arrays of ids, in an order."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.whole_numbers import is_whole


@dataclass(frozen=True, eq=False)
class TraceRequest:
  """A prompt, and perhaps the answer that was decoded after it.

  Attributes:
    ids: int32 [t]. Token ids of the prompt and then of its answer; in a trace
      of hashed blocks one id per block, and two requests share a prefix exactly
      as long as their ids agree.
    length: Tokens of prompt and answer; a trailing partial block has no id.
    group: Requests of one group may share a prefix (a document, a system
      prompt); requests of different groups are not compared by the paper.
    index: Number of the request in its file, from 0.
    arrival: Seconds after the first request, 0 where the file has no times.
    answer: How many of the last tokens were decoded by a model; they belong to
      what may be stored, and are counted in no report. 0 where the file has
      prompts only, as every trace of hashed blocks.

  >>> request = TraceRequest(np.array([7, 8, 9], np.int32), length=3, answer=1)
  >>> request.prompt.tolist(), request.prompt_length
  ([7, 8], 2)
  """

  ids: np.ndarray
  length: int
  group: int = 0
  index: int = 0
  arrival: float = 0.0
  answer: int = 0

  @property
  def tokens(self) -> np.ndarray:
    """The ids, under the name they have in a stream of token ids."""
    return self.ids

  @property
  def prompt(self) -> np.ndarray:
    """The ids without those of the answer, int32 [t - answer]."""
    return self.ids[: len(self.ids) - self.answer]

  @property
  def prompt_length(self) -> int:
    """Tokens of the prompt alone."""
    return self.length - self.answer


@dataclass(frozen=True, eq=False)
class Trace:
  """A request stream: what is served or replayed, in this order.

  Attributes:
    name: Where it came from, for reports.
    requests: The requests, in the order in which they are served.
    block: Tokens per id; 1 for token ids.
    skipped_lines: Lines of the file that hold no request and were skipped, as
      the caller had allowed.
    interleave_seed: Seed of the order, where `interleave` made it.

  >>> trace = token_trace("mine", [[1, 2, 3], [1, 2]], groups=[0, 0])
  >>> len(trace), trace.longest
  (2, 3)
  """

  name: str
  requests: tuple[TraceRequest, ...]
  block: int = 1
  skipped_lines: int = 0
  interleave_seed: int | None = None

  def __len__(self) -> int:
    """Number of requests."""
    return len(self.requests)

  def prompts(self) -> "Trace":
    """The same stream without its answers."""
    if not any(request.answer for request in self.requests):
      return self
    bare = (
      dataclasses.replace(r, ids=r.prompt, length=r.prompt_length, answer=0)
      for r in self.requests
    )
    return dataclasses.replace(self, requests=tuple(bare))

  @property
  def longest(self) -> int:
    """Tokens of the longest request, those of its answer included."""
    return max(request.length for request in self.requests)


def check_number(name: str, value: Any, low: int, end: int = 2**31) -> None:
  """Refuses what is no integer in a range; NumPy would cut off a fraction.

  Args:
    name: what the number is called, for the sentence of a refusal.
    value: anything.
    low: the least that is allowed.
    end: the least above it that is not.

  Raises:
    ValueError: the value is no integer in [low, end); True is none.

  >>> check_number("count", 2.5, 1, 10)
  Traceback (most recent call last):
  ValueError: count must be an integer of at least 1 and below 10, got 2.5
  """
  if not is_whole(value) or not low <= int(value) < end:
    raise ValueError(
      f"{name} must be an integer of at least {low} and below {end}, got"
      f" {brief(value)}"
    )


def check_token_ids(where: str, ids: np.ndarray) -> None:
  """Refuses what is no vector of token ids; NumPy would cut or wrap it.

  Args:
    where: What the sentence of a refusal begins with.
    ids: Any array.

  Raises:
    ValueError: If the ids are no vector, no integers (floats, NaN among them,
      booleans and times are none), masked, or not in [0, 2**31).

  >>> check_token_ids("tail", np.array([1.5]))
  Traceback (most recent call last):
  ValueError: tail: token ids must be a vector of integers, got float64 (1,)
  """
  if np.ma.isMaskedArray(ids):
    raise ValueError(f"{where}: token ids must not be a masked array")
  if ids.ndim != 1 or ids.dtype.kind not in "iu":
    raise ValueError(
      f"{where}: token ids must be a vector of integers, got {ids.dtype}"
      f" {ids.shape}"
    )
  bad = (ids < 0) | (ids > np.iinfo(np.int32).max)
  if np.any(bad):
    raise ValueError(
      f"{where}: token ids must be in [0, 2**31), got {ids[np.argmax(bad)]}"
    )


def token_row(where: str, ids: Any) -> np.ndarray:
  """The token ids of one request as int32, checked.

  Args:
    where: begins the sentence of a refusal.
    ids: what a tokenizer returns: a list or an array of integers.

  Returns:
    The ids [t], at least one.

  Raises:
    ValueError: there are none, or as `check_token_ids`.

  >>> token_row("request 0", [3, 1]).dtype.name
  'int32'
  """
  try:
    row = np.asanyarray(ids)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{where}: token ids are no array: {error}") from None
  if row.ndim == 1 and not len(row):
    raise ValueError(f"{where} has no tokens")
  check_token_ids(where, row)
  return np.ascontiguousarray(row, np.int32)


def _listed(name: str, what: str, values: Any) -> list[Any]:
  """The values as a list; ValueError for what has none, such as a number."""
  try:
    return list(values)
  except TypeError:
    raise ValueError(
      f"{name}: {what} must be a list, got {brief(values)}"
    ) from None


def _whole_numbers(name: str, what: str, values: Iterable[Any]) -> list[int]:
  """The values as Python integers; ValueError for what `int` would cut off."""
  values = _listed(name, f"{what}s", values)
  for index, value in enumerate(values):
    if not is_whole(value) or not -(2**63) <= int(value) < 2**63:
      raise ValueError(
        f"{name}: {what} of request {index} must be an integer of 64 bits, got"
        f" {brief(value)}"
      )
  return [int(value) for value in values]


def _check_counts(name: str, rows: int, **columns: Sequence[int]) -> None:
  """Raises ValueError where a column has not one value per row."""
  for what, column in columns.items():
    if len(column) != rows:
      raise ValueError(
        f"{name}: {what} must have one value for each of {rows} rows, got"
        f" {len(column)}"
      )


def token_trace(
  name: str,
  rows: Sequence[Any],
  groups: Sequence[int],
  answers: Sequence[int] | None = None,
) -> Trace:
  """A trace of token ids from rows and their groups.

  Args:
    name: where the rows came from, for reports.
    rows: lists or arrays of integers [t], the token ids of each request.
    groups: one group per row.
    answers: how many of the last ids of each row were decoded, at least one id
      being the prompt's; None for none.

  Returns:
    The requests, in the order of the rows.

  Raises:
    ValueError: there is no row, a row is empty, an id is no integer in
      [0, 2**31), or groups or answers are no integers, one per row.

  >>> len(token_trace("two", [np.array([1, 2]), np.array([1])], [0, 0]))
  2
  """
  rows = _listed(name, "the rows", rows)
  if not rows:
    raise ValueError(f"{name} has no requests")
  groups = _whole_numbers(name, "the group", groups)
  answers = [0] * len(rows) if answers is None else answers
  answers = _whole_numbers(name, "the answer", answers)
  _check_counts(name, len(rows), groups=groups, answers=answers)
  requests = []
  for index, (row, group, answer) in enumerate(zip(rows, groups, answers)):
    ids = token_row(f"{name}: request {index}", row)
    if not 0 <= answer < len(ids):
      raise ValueError(
        f"{name}: the answer of request {index} must have 0 to"
        f" {len(ids) - 1} of its {len(ids)} tokens, got {answer}"
      )
    requests.append(TraceRequest(ids, len(ids), group, index, answer=answer))
  return Trace(name=name, requests=tuple(requests))


def reordered(trace: Trace, order: Sequence[int]) -> Trace:
  """The same requests in another order.

  Args:
    trace: the requests.
    order: positions in the trace, in the order in which to serve.

  Returns:
    A trace of the same name and block size.
  """
  requests = tuple(trace.requests[index] for index in order)
  return dataclasses.replace(trace, requests=requests)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
  """Number of leading ids that are equal.

  Args:
    a: ids [t].
    b: ids [u].

  Returns:
    A number from 0 to the smaller of both lengths.

  >>> common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
  2
  """
  shorter = min(len(a), len(b))
  differs = a[:shorter] != b[:shorter]
  first = int(np.argmax(differs)) if shorter else 0
  return first if shorter and differs[first] else shorter
