"""A stream of requests whose overlap depths follow a chosen distribution."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse_prefix_jax.workloads.request import (
  Trace,
  check_number,
  token_trace,
)


def synthetic_stream(
  weights: Sequence[float | int] | np.ndarray,
  *,
  requests: int,
  length: int,
  bin_tokens: int = 64,
  groups: int = 1,
  vocabulary: int = 512,
  seed: int = 0,
) -> Trace:
  """Requests that share exactly a drawn number of tokens with their document.

  Every group has a document of `length` tokens, and its first request is that
  document. Each later request copies the document up to a depth drawn from
  `weights`, differs from it in the very next token, and goes on at random. The
  overlap of two requests of a group is then the smaller of their depths (or
  more, by chance, where the depths are equal).

  Args:
    weights: [N] weights of the overlap depths in bins, as for
      `solve_placement`; the last bin must lie within the document.
    requests: number of requests, at least `groups`.
    length: number of tokens of every request.
    bin_tokens: number of tokens per bin.
    groups: number of documents, which are served in turn.
    vocabulary: ids are drawn from [0, vocabulary); at least 2.
    seed: chooses the draws; the same seed gives the same stream.

  Returns:
    A trace of token ids.

  Raises:
    ValueError: weights that are negative, not finite or all zero, or a size
      that is no integer or too small: `length` must reach the last bin.

  >>> stream = synthetic_stream([0, 1], requests=3, length=128)
  >>> a, b, c = (request.ids for request in stream.requests)
  >>> bool((a[:64] == b[:64]).all()), bool(a[64] == b[64])
  (True, False)
  """
  check_number("groups", groups, 1)
  check_number("requests", requests, groups)
  check_number("bin_tokens", bin_tokens, 1)
  check_number("vocabulary", vocabulary, 2, 2**31 + 1)
  check_number("seed", seed, 0, 2**64)
  weights = _checked(weights)
  check_number("length", length, max(1, (len(weights) - 1) * bin_tokens))
  random = np.random.default_rng(seed)
  documents = random.integers(vocabulary, size=(groups, length))
  depths = random.choice(len(weights), size=requests, p=weights / weights.sum())
  rows = random.integers(vocabulary, size=(requests, length))
  for index, (row, depth) in enumerate(zip(rows, depths * bin_tokens)):
    document = documents[index % groups]
    shared = length if index < groups else int(depth)
    row[:shared] = document[:shared]
    if shared < length and row[shared] == document[shared]:
      row[shared] = (row[shared] + 1) % vocabulary
  order = [index % groups for index in range(requests)]
  return token_trace("synthetic", list(rows), order)


def _checked(weights: Any) -> np.ndarray:
  """The weights as float64 [N]; ValueError for what is no distribution."""
  try:
    numbers = np.asarray(weights, np.float64)
  except (TypeError, ValueError):
    raise ValueError("weights must be a vector of finite numbers") from None
  if numbers.ndim != 1 or not np.all(np.isfinite(numbers)):
    raise ValueError("weights must be a vector of finite numbers")
  if np.any(numbers < 0) or not np.any(numbers > 0):
    raise ValueError("weights must not be negative nor all zero")
  with np.errstate(over="ignore"):
    if not np.isfinite(numbers.sum()):
      raise ValueError("weights must have a sum that is finite")
  return numbers
