"""A stream of questions about documents of the recall task.

A prompt is a document followed by a question, up to where its answer would
stand; a second turn continues a first one with its answer and another question.
"""

from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.workloads.recall.documents import (
  ANSWER_OFFSET,
  QUESTION_LENGTH,
  RecallDocument,
  RecallShape,
  recall_document,
)
from sparse_prefix_jax.workloads.recall.vocabulary import word_id

LENGTHS = (1024, 1408, 2048, 2048, 3072, 4096)
"""Tokens of a first prompt about each document."""
FACTS = 24
"""Facts of each document."""

_QUESTIONS = 9
_SECOND_TURNS = 3  # of the questions, which continue the three before


class RecallRequest(NamedTuple):
  """One request of the stream.

  Attributes:
    group: Which document it is about.
    token_ids: The prompt. int32 [t]
    shared: How many of its tokens are the document.
    answer: The id that should come next.
  """

  group: int
  token_ids: np.ndarray
  shared: int
  answer: int


def recall_requests(seed: int) -> tuple[RecallRequest, ...]:
  """Every question about every document as a request, in a mixed order.

  A second turn comes after its first. Names are those that training never sees.

  Args:
    seed: What documents and order are drawn from.

  Returns:
    The requests, in the order in which they arrive.

  Raises:
    ValueError: If the seed is negative.

  Example:
    >>> requests = recall_requests(0)
    >>> len(requests), max(r.token_ids.size for r in requests)
    (54, 4105)
  """
  if seed < 0:
    raise ValueError(f"seed is {seed}; it must not be negative.")
  generator = np.random.default_rng((seed, len(LENGTHS)))
  streams = [
    iter(_about(group, _document(length, generator)))
    for group, length in enumerate(LENGTHS)
  ]
  order = np.repeat(np.arange(len(streams)), _QUESTIONS)
  generator.shuffle(order)
  return tuple(next(streams[group]) for group in order)


def _document(length: int, generator: np.random.Generator) -> RecallDocument:
  """A document so long that a prompt about it has that length."""
  tokens = length - ANSWER_OFFSET + QUESTION_LENGTH * _QUESTIONS
  shape = RecallShape(
    tokens=tokens, facts=FACTS, questions=_QUESTIONS, distinct=True
  )
  return recall_document(shape, generator, held_out=True)


def _about(group: int, document: RecallDocument) -> list[RecallRequest]:
  """The requests about one document: first turns, then second ones."""
  body, end = document.body, np.array([word_id(".")], np.int32)
  requests: list[RecallRequest] = []
  for index in range(_QUESTIONS):
    start = body
    if index >= _QUESTIONS - _SECOND_TURNS:
      first = requests[index - _SECOND_TURNS]
      answer = np.array([first.answer], np.int32)
      start = np.concatenate([first.token_ids, answer, end])
    prompt = np.concatenate([start, document.question(index)])
    answer = document.answer(index)
    requests.append(RecallRequest(group, prompt, body.size, answer))
  return requests
