"""What a client is told of each token, whatever the tokenizer cuts."""

import json

import pytest

from sparse_prefix_jax.serving.answers import GrowingAnswer
from sparse_prefix_jax.serving.server.calls import read_call
from sparse_prefix_jax.serving.server.pieces import Piece
from sparse_prefix_jax.serving.server.replies import Reply
from tests.serving.text.tokenizers_for_tests import KINDS, text_tokenizer

TEXTS = {
  "byte_level": "He \u00e9 lost  the \u65e5\u672c \U0001f600 tool",
  "byte_fallback": "a the \u65e5\u672c \u00e9 \U0001f600 b.",
  "words": "Anna lives in Oslo . \u00c4h Where ?",
  "word_pieces": "a the ab \u672c 's .",
  "metaspace": "a the \u00e9 b.",
}


def replied(kind, *, chat=False, stop=(), text=None, end=False):
  """The chunks of a stream, and the reply as a whole."""
  tokenizer = text_tokenizer(kind)
  body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True}
  body = body | {"top_logprobs": 2} if chat else {"prompt": "a", "logprobs": 2}
  call = read_call(json.dumps(body).encode(), "m", chat=chat)
  reply = Reply(call, "m", tokenizer)
  ids = tokenizer.encode(text or TEXTS[kind]).tolist()
  ends = {max(ids) + 1} if end else set()
  answer = GrowingAnswer(tokenizer, stop, ends)
  chunks = []

  def tell():
    delta = answer.delta(0, 0, 1)
    if delta is not None:
      piece = Piece(0, delta, 1, 0)
      reply.add(piece)
      chunks.append(reply.chunk(piece)["choices"][0])

  for token in [*ids, *ends]:
    answer.add(token, -0.5, [(token, -0.5), (ids[0], -1.5)])
    tell()
  answer.finish("length")
  tell()
  return chunks, reply.whole()["choices"][0]


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_join_to_the_text_and_offsets_index_it(kind, stopped):
  chunks, whole = replied(kind)
  if stopped:
    chunks, whole = replied(kind, stop=[whole["text"][-3:-1]])
  text, told = whole["text"], whole["logprobs"]
  assert len(text) > 5 and whole["finish_reason"] == (
    "stop" if stopped else "length"
  )
  assert "".join(told["tokens"]) == text
  for start, token in zip(told["text_offset"], told["tokens"], strict=True):
    assert text[start : start + len(token)] == token
  for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
    streamed = [x for chunk in chunks for x in chunk["logprobs"][name]]
    assert streamed == told[name]
  assert "".join(chunk["text"] for chunk in chunks) == text


def test_spaces_belong_to_the_words_behind_them():
  _, whole = replied("words", text="Anna lives in Oslo .")
  assert whole["logprobs"]["tokens"] == ["Anna", " lives", " in", " Oslo", " ."]
  assert whole["logprobs"]["top_logprobs"][1] == {" lives": -0.5, " Anna": -1.5}


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_bytes_of_a_chat_are_those_of_the_tokens(kind):
  _, whole = replied(kind, chat=True)
  content = whole["logprobs"]["content"]
  said = whole["message"]["content"]
  assert "".join(one["token"] for one in content) == said
  split = [one for one in content if not one["token"] and one["bytes"]]
  assert len(split) >= 5  # Halves of characters.
  if kind == "byte_level":
    joined = bytes(byte for one in content for byte in one["bytes"])
    assert joined.decode() == said


def test_half_a_character_has_a_name_of_its_own():
  _, whole = replied("byte_level", text="\u00e9")
  told = whole["logprobs"]
  assert told["tokens"] == ["", "\u00e9"]
  assert [*told["top_logprobs"][0]] == [r"bytes:\xc3"]


def test_an_end_has_no_text():
  _, whole = replied("byte_level", text="He", end=True)
  assert whole["text"] == "He" and whole["logprobs"]["tokens"][-1] == ""
