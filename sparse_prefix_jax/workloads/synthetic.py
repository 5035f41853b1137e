"""A stream of requests whose overlap depths follow a chosen distribution."""

from collections.abc import Sequence

import numpy as np

from sparse_prefix_jax.workloads.request import Trace, token_trace


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
    requests: how many, at least `groups`.
    length: tokens of every request.
    bin_tokens: tokens per bin.
    groups: documents, served in turn.
    vocabulary: ids are drawn from [0, vocabulary), at least 2.
    seed: of the generator.

  Returns:
    A trace of token ids.

  Raises:
    ValueError: weights that are negative, not finite or all zero, or sizes that
      are too small.

  >>> stream = synthetic_stream([0, 1], requests=3, length=128)
  >>> a, b, c = (request.ids for request in stream.requests)
  >>> bool((a[:64] == b[:64]).all()), bool(a[64] == b[64])
  (True, False)
  """
  weights = np.asarray(weights, np.float64)
  _check(weights, requests, length, bin_tokens, groups, vocabulary)
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


def _check(
  weights: np.ndarray,
  requests: int,
  length: int,
  bin_tokens: int,
  groups: int,
  vocabulary: int,
) -> None:
  """Raises ValueError for arguments of `synthetic_stream` out of range."""
  if weights.ndim != 1 or not np.all(np.isfinite(weights)):
    raise ValueError("weights must be a vector of finite numbers")
  if np.any(weights < 0) or not np.any(weights > 0):
    raise ValueError("weights must not be negative nor all zero")
  if groups < 1 or requests < groups:
    raise ValueError(
      f"requests must be at least groups >= 1, got {requests} and {groups}"
    )
  if vocabulary < 2 or bin_tokens < 1:
    raise ValueError(
      "vocabulary must be at least 2 and bin_tokens at least 1, got"
      f" {vocabulary} and {bin_tokens}"
    )
  if length < max(1, (len(weights) - 1) * bin_tokens):
    raise ValueError(
      f"length must reach the last bin, {(len(weights) - 1) * bin_tokens}"
      f" tokens, got {length}"
    )
