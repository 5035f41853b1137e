"""The tokenizer agrees with the ids of documents, and loses no text."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sparse_prefix_jax.workloads.recall import vocabulary
from sparse_prefix_jax.workloads.recall.documents import (
  RecallShape,
  recall_document,
)
from sparse_prefix_jax.workloads.recall.tokenizer import recall_tokenizer

SHAPE = RecallShape(tokens=512, facts=24, questions=24)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_document_is_read_as_the_ids_that_it_was_written_in(
  held_out: bool,
) -> None:
  document = recall_document(SHAPE, np.random.default_rng(1), held_out=held_out)
  ids, tokenizer = document.token_ids.tolist(), recall_tokenizer()
  text = tokenizer.decode(ids)
  assert tokenizer.encode(text).ids == ids
  words = [vocabulary.WORDS[i - vocabulary.FIRST_WORD] for i in ids]
  assert text == " ".join(words)


def test_unknown_words_are_bytes() -> None:
  encoded = recall_tokenizer().encode("Anna Übel")
  known = vocabulary.word_id("Anna")
  assert encoded.ids == [known, 256, *"Übel".encode()]


@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"])))
@hypothesis.settings(deadline=None, derandomize=True)
def test_every_text_comes_back(text: str) -> None:
  text = text.replace(vocabulary.SPACE, "").lstrip(" ")
  tokenizer = recall_tokenizer()
  ids = tokenizer.encode(text).ids
  assert tokenizer.decode(ids) == text
  assert all(0 <= token < vocabulary.VOCAB_SIZE for token in ids)
