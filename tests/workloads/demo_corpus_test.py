"""The demo's documents, tokenizer and stream are what they promise to be."""

import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import train_demo_bpe
from sparse_prefix_jax.workloads import demo_corpus

CORPUS = demo_corpus.load_demo_corpus()
TITLES = [document.title for document in CORPUS]


def _tokens(text: str) -> list[int]:
  return demo_corpus.load_demo_tokenizer().encode(text).ids


def test_there_are_at_least_four_documents() -> None:
  assert len(CORPUS) >= 4
  assert len(set(TITLES)) == len(CORPUS)


@pytest.mark.parametrize("document", CORPUS, ids=TITLES)
def test_documents_are_long_and_have_many_questions(
  document: demo_corpus.Document,
) -> None:
  assert len(document.text.split()) >= 1600
  assert len(document.questions) >= 9
  texts = [question.text for question in document.questions]
  assert len(set(texts)) == len(texts)
  assert all(text.endswith("?") for text in texts)
  second = [q for q in document.questions if q.follow_up]
  assert len(second) >= 2
  assert all(q.answer and q.follow_up.endswith("?") for q in second)


@pytest.mark.parametrize("document", CORPUS, ids=TITLES)
def test_documents_are_prose_and_not_repetition(
  document: demo_corpus.Document,
) -> None:
  words = document.text.lower().split()
  phrases = collections.Counter(zip(*(words[i:] for i in range(6))))
  assert phrases.most_common(1)[0][1] <= 4
  assert len(set(words)) >= 0.3 * len(words)


@pytest.mark.parametrize("document", CORPUS, ids=TITLES)
def test_questions_speak_of_their_document(
  document: demo_corpus.Document,
) -> None:
  """More of a question's long words stand in its document than elsewhere."""

  def shared(other: demo_corpus.Document) -> int:
    known = set(other.text.lower().replace(",", " ").split())
    asked = " ".join(q.text for q in document.questions).lower()
    return sum(len(w) > 4 and w in known for w in asked.split())

  others = [shared(other) for other in CORPUS if other is not document]
  assert shared(document) > max(others)


@pytest.mark.parametrize("document", CORPUS, ids=TITLES)
def test_the_tokenizer_gives_every_document_back(
  document: demo_corpus.Document,
) -> None:
  text = demo_corpus.document_text(document)
  ids = _tokens(text)
  assert demo_corpus.load_demo_tokenizer().decode(ids) == text
  assert 2000 <= len(ids) <= 3000


@given(st.text())
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
  tokenizer = demo_corpus.load_demo_tokenizer()
  ids = tokenizer.encode(text).ids
  assert tokenizer.decode(ids) == text
  assert all(0 <= i < tokenizer.get_vocab_size() for i in ids)


def test_the_vocabulary_is_small() -> None:
  vocabulary = demo_corpus.load_demo_tokenizer().get_vocab_size()
  assert vocabulary == train_demo_bpe.VOCABULARY <= 4096


def test_training_again_makes_the_tokenizer_that_ships() -> None:
  made = json.loads(train_demo_bpe.train(train_demo_bpe.VOCABULARY).to_str())
  ships = json.loads(demo_corpus.load_demo_tokenizer().to_str())
  assert made["model"]["vocab"] == ships["model"]["vocab"]
  assert made["model"]["merges"] == ships["model"]["merges"]


def _as_lists(
  requests: tuple[demo_corpus.DemoRequest, ...],
) -> list[tuple[int, list[int]]]:
  return [(r.group, r.token_ids.tolist()) for r in requests]


def test_the_stream_is_a_function_of_the_seed() -> None:
  first = _as_lists(demo_corpus.demo_requests(7))
  assert first == _as_lists(demo_corpus.demo_requests(interleave_seed=7))
  other = _as_lists(demo_corpus.demo_requests(8))
  assert first != other
  assert sorted(first) == sorted(other)


@pytest.mark.parametrize("seed", [0, 42])
def test_every_turn_of_every_question_is_asked_once(seed: int) -> None:
  requests = demo_corpus.demo_requests(seed)
  asked = collections.Counter(request.group for request in requests)
  for group, document in enumerate(CORPUS):
    second = sum(bool(question.follow_up) for question in document.questions)
    assert asked[group] == len(document.questions) + second
  groups = [request.group for request in requests]
  assert sum(a != b for a, b in itertools.pairwise(groups)) > len(groups) // 2


@pytest.mark.parametrize("seed", [0, 42])
def test_prompts_share_their_document_and_second_turns_their_first(
  seed: int,
) -> None:
  tokenizer = demo_corpus.load_demo_tokenizer()
  seen: list[list[int]] = []
  continued = 0
  for group, token_ids in demo_corpus.demo_requests(seed):
    assert token_ids.dtype == np.int32
    ids = token_ids.tolist()
    head = _tokens(demo_corpus.document_text(CORPUS[group]))
    assert ids[: len(head)] == head
    turns = tokenizer.decode(ids[len(head) :]).count("Question:")
    before = [s for s in seen if ids[: len(s)] == s]
    assert turns == 1 + len(before)
    continued += len(before)
    seen.append(ids)
  assert continued == sum(
    bool(q.follow_up) for document in CORPUS for q in document.questions
  )


def test_a_negative_seed_is_refused() -> None:
  with pytest.raises(ValueError, match="interleave_seed is -1"):
    demo_corpus.demo_requests(-1)
