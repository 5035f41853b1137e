"""Documents of the recall task, read back as text."""

import itertools
import re
from typing import Any

import numpy as np
import pytest

from sparse_prefix_jax.workloads.recall import vocabulary
from sparse_prefix_jax.workloads.recall.documents import (
  ANSWER_OFFSET,
  RecallDocument,
  RecallShape,
  recall_batch,
  recall_document,
)

LONG = RecallShape(tokens=2048, facts=64, questions=32, distinct=True)
FACT = re.compile(r"(\w+ \w+) (lives in|keeps a) (\w+) \.")
QUESTION = re.compile(
  r"(?:Where|What) does (\w+ \w+) (live|keep) \? (?:In|A) (\w+) \."
)


def text_of(ids: np.ndarray) -> str:
  words = [vocabulary.WORDS[i - vocabulary.FIRST_WORD] for i in ids]
  return " ".join(words)


def drawn(shape: RecallShape, seed: int, held_out: bool) -> RecallDocument:
  generator = np.random.default_rng(seed)
  return recall_document(shape, generator, held_out=held_out)


@pytest.mark.parametrize("held_out", [False, True])
def test_every_question_is_answered_by_one_fact(held_out: bool) -> None:
  document = drawn(LONG, 3, held_out)
  body = text_of(document.body)
  stated = {
    (name, relation[:4]): value for name, relation, value in FACT.findall(body)
  }
  assert len(FACT.findall(body)) == len(stated) == LONG.facts
  asked = QUESTION.findall(text_of(document.token_ids[document.body.size :]))
  assert len({(name, relation) for name, relation, _ in asked}) == 32
  for index, (name, relation, value) in enumerate(asked):
    assert stated[name, relation] == value
    assert vocabulary.word_id(value) == document.answer(index)
    question = text_of(document.question(index))
    assert f"does {name} {relation} ?" in question
    assert not question.endswith(value)


@pytest.mark.parametrize("held_out", [False, True])
def test_names_of_tests_are_in_no_document_of_training(held_out: bool) -> None:
  first, last = vocabulary.FIRST_NAMES, vocabulary.LAST_NAMES
  allowed = {
    f"{first[i]} {last[j]}" for i, j in vocabulary.name_pairs(held_out=held_out)
  }
  for seed in range(5):
    words = text_of(drawn(LONG, seed, held_out).token_ids).split()
    pairs = {
      f"{one} {other}"
      for one, other in itertools.pairwise(words)
      if one in first and other in last
    }
    assert pairs <= allowed


def test_fillers_hold_names_and_values_of_nobody() -> None:
  body = FACT.sub("", text_of(drawn(LONG, 5, False).body)).split()
  for kind in (
    vocabulary.FIRST_NAMES,
    vocabulary.LAST_NAMES,
    vocabulary.TOWNS,
    vocabulary.KEPT,
  ):
    assert len(set(body) & set(kind)) >= 10


@pytest.mark.parametrize("facts", [24, 64])
def test_a_guess_among_the_values_stated_is_right_less_than_2_percent(
  facts: int,
) -> None:
  shape = RecallShape(tokens=2048, facts=facts, questions=24, distinct=True)
  chances = []
  for seed in range(20):
    document = drawn(shape, seed, held_out=True)
    stated = set(text_of(document.body).split())
    for index in range(shape.questions):
      word = text_of(np.array([document.answer(index)]))
      kind = next(k for k in (vocabulary.TOWNS, vocabulary.KEPT) if word in k)
      chances.append(1 / len(stated & set(kind)))
  assert np.mean(chances) < 0.02


def test_a_batch_has_documents_of_the_same_shape() -> None:
  shape = RecallShape(tokens=128, facts=5, questions=10)
  batch = recall_batch(shape, 3, np.random.default_rng(0), held_out=False)
  assert batch.token_ids.shape == (3, 128)
  assert batch.answers.shape == (3, 10)
  assert batch.token_ids.dtype == batch.answers.dtype == np.int32
  assert len({row.tobytes() for row in batch.token_ids}) == 3


def test_questions_that_are_not_distinct_tell_nothing_about_the_next() -> None:
  """Otherwise the last one could be answered by counting."""
  shape = RecallShape(tokens=128, facts=5, questions=10)
  rows = [
    QUESTION.findall(text_of(drawn(shape, i, False).token_ids))
    for i in range(50)
  ]
  counts = [[row.count(asked) for asked in set(row)] for row in rows]
  assert len({len(count) for count in counts}) > 1
  repeated = np.mean([row[-1] == row[-2] for row in rows])
  assert 0.05 < repeated < 0.4
  assert drawn(shape, 0, False).question(0).size == ANSWER_OFFSET


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"tokens": 0}, "tokens is 0; it must be >= 1"),
    ({"facts": 513}, "facts is 513; it must be at most 512"),
    ({"tokens": 122}, r"tokens is 122; 5 facts .* at least 5 more"),
    (
      {"distinct": True},
      "questions is 10; distinct ones are at most facts = 5",
    ),
    ({"questions": 11}, "tokens is 128; 5 facts and 11 questions take 129"),
  ],
)
def test_what_cannot_be_written_is_refused(
  changes: dict[str, Any], sentence: str
) -> None:
  values: dict[str, Any] = {"tokens": 128, "facts": 5, "questions": 10}
  with pytest.raises(ValueError, match=sentence):
    RecallShape(**values | changes)
