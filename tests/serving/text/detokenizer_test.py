"""Pieces of text: together they are the text, and none is taken back."""

import hypothesis
import pytest
from hypothesis import strategies as st

from sparse_prefix_jax.serving.text.detokenizer import Detokenizer
from tests.serving.text.tokenizers_for_tests import KINDS, text_tokenizer

UNKNOWN = 5000  # an id that a model has and no tokenizer knows


def pieces_of(kind, ids):
  text = Detokenizer(text_tokenizer(kind))
  return [*(text.push(token) for token in ids), text.finish()]


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=60)
def test_pieces_of_any_ids_are_the_text(kind, data):
  tokenizer = text_tokenizer(kind)
  known = st.integers(0, tokenizer.vocab_size - 1)
  # Bytes of UTF-8, whole and torn, are what it is about.
  torn = st.sampled_from([0x41, 0x20, 0x80, 0xA9, 0xC3, 0xE2, 0xF0, 0x9F, 0xFF])
  often = torn.map(lambda x: x % tokenizer.vocab_size) | known
  ids = data.draw(st.lists(often | st.just(UNKNOWN), max_size=24))
  assert "".join(pieces_of(kind, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "words"])
@hypothesis.given(text=st.text(max_size=12))
@hypothesis.settings(max_examples=60)
def test_pieces_of_a_text_hold_no_half_of_a_character(kind, text):
  ids = text_tokenizer(kind).encode(text).tolist()
  pieces = pieces_of(kind, ids)
  whole = text_tokenizer(kind).decode(ids)
  assert "".join(pieces) == whole
  seen = 0
  for piece in pieces:
    seen += piece.count("\ufffd")
    # Only what the text itself holds, and where it holds it.
    assert "\ufffd" not in piece or seen <= whole.count("\ufffd")
  assert "\ufffd" in text or seen == 0


class Counting:
  """A tokenizer that counts what it decodes."""

  def __init__(self, kind):
    self._of, self.decoded = text_tokenizer(kind), 0

  def __getattr__(self, name):
    return getattr(self._of, name)

  def decode(self, ids):
    self.decoded += len(ids)
    return self._of.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace"])
def test_a_long_run_of_torn_characters_costs_no_more_per_id(kind):
  """A caller can force such ids, and others wait for what they cost."""
  tokenizer = Counting(kind)
  torn = tokenizer.encode("\ufffd" if kind != "byte_level" else "🌊").tolist()
  ids = torn[-1:] * 300 + torn + tokenizer.encode("a").tolist()
  text = Detokenizer(tokenizer)
  pieces = [text.push(token) for token in ids]
  assert tokenizer.decoded < 50 * len(ids)
  assert "".join([*pieces, text.finish()]) == tokenizer.decode(ids)
  assert sum(map(bool, pieces[:300])) > 10


def test_an_emoji_comes_whole():
  tokenizer = text_tokenizer("byte_level")
  ids = tokenizer.encode("tide 🌊 turns").tolist()
  pieces = [piece for piece in pieces_of("byte_level", ids) if piece]
  assert any("🌊" in piece for piece in pieces) and len(pieces) > 3


@pytest.mark.parametrize("kind", ["byte_level", "words"])
def test_plain_words_come_at_once(kind):
  ids = text_tokenizer(kind).encode("Anna lives in Oslo .").tolist()
  pieces = pieces_of(kind, ids)
  assert all(pieces[:-1]) and pieces[-1] == ""


def test_a_run_of_bytes_is_judged_as_a_whole():
  """One byte that fits nowhere spoils the run, as the decoder has it."""
  assert pieces_of("byte_fallback", [0x41, 0xFF]) == ["", "", "\ufffd\ufffd"]
  assert pieces_of("byte_fallback", [0x41, 257]) == ["", "A a", ""]


def test_special_tokens_have_no_text():
  tokenizer = text_tokenizer("byte_level")
  end, tool = tokenizer.vocab_size - 1, tokenizer.vocab_size - 2
  first, *rest = tokenizer.encode("🌊").tolist()
  pieces = pieces_of("byte_level", [first, end, *rest, tool, end])
  assert "".join(pieces) == "🌊<tool>"


def test_one_id_at_a_time_would_be_caught():
  tokenizer = text_tokenizer("byte_level")
  ids = tokenizer.encode("🌊").tolist()
  assert "".join(tokenizer.decode([i]) for i in ids) != "🌊"
  assert "".join(pieces_of("byte_level", ids)) == "🌊"
