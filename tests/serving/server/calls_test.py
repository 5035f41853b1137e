"""Bodies that are understood, and those that are refused with a sentence."""

import json
import re

import pytest

from sparse_prefix_jax.serving.sampling import Sampling
from sparse_prefix_jax.serving.server.calls import Conversation, read_call
from tests.project import checkout


def read(chat=False, **body):
  return read_call(json.dumps(body).encode(), "m", chat=chat)


def talk(**body):
  return read(
    True, **({"messages": [{"role": "user", "content": "Hi"}]} | body)
  )


def test_what_a_template_reads_comes_with_the_conversation():
  call = talk(chat_template_kwargs={"enable_thinking": False})
  assert call.prompts[0].variables == {"enable_thinking": False}
  with pytest.raises(ValueError, match="chat_template_kwargs names messages"):
    talk(chat_template_kwargs={"messages": []})
  with pytest.raises(ValueError, match="this is not done here"):
    read(prompt="Hi", chat_template_kwargs={})


@pytest.mark.parametrize(
  ("told", "read"),
  [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("[1]", "[1]"), ("{", "{")],
)
def test_arguments_of_tools_are_what_their_json_says(told, read):
  calls = [{"id": "1", "function": {"name": "f", "arguments": told}}, "x"]
  messages = [{"role": "assistant", "content": None, "tool_calls": calls}]
  (message,) = talk(messages=messages).prompts[0].messages
  first, second = message["tool_calls"]
  assert first["function"] == {"name": "f", "arguments": read}
  assert (first["id"], second) == ("1", "x")


@pytest.mark.parametrize(
  ("prompt", "prompts"),
  [
    ("Hi", ("Hi",)),
    (["a", "b"], ("a", "b")),
    ([1, 2], ([1, 2],)),
    ([[1, 2], [3]], ([1, 2], [3])),
  ],
)
def test_a_prompt_is_a_text_or_ids_or_several(prompt, prompts):
  assert read(prompt=prompt).prompts == prompts


def test_what_is_not_said_is_as_everywhere():
  content = b'\xef\xbb\xbf{"prompt": "Hi", "functions": []}'
  assert read_call(content, "m", chat=False).prompts == ("Hi",)
  call = read(prompt="Hi")
  assert call.sampling == Sampling(temperature=1.0, seed=call.sampling.seed)
  assert (call.max_tokens, call.samples, call.stops) == (16, 1, ())
  assert (call.stream, call.usage, call.best) == (False, False, None)
  assert talk().max_tokens is None


def test_a_seed_that_is_not_said_is_drawn_where_ids_are():
  assert len({read(prompt="Hi").sampling.seed for _ in range(5)}) == 5
  assert len({read(prompt="Hi", seed=None).sampling.seed for _ in "ab"}) == 2
  assert read(prompt="Hi", temperature=0).sampling == Sampling()
  assert read(prompt="Hi", seed=0).sampling.seed == 0


def test_null_asks_for_nothing():
  call = read(prompt="Hi", model=None, n=None, stop=None, temperature=None)
  assert (call.samples, call.stops, call.sampling.temperature) == (1, (), 1.0)


def test_the_request_of_the_page_is_one():
  page = (checkout.ROOT / "docs" / "how-to" / "serve.md").read_text("utf-8")
  (block,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
  (body,) = re.findall(r"-d '(.*?)'", block, re.DOTALL)
  call = read_call(body.encode(), "recall", chat=False)
  assert (call.max_tokens, call.sampling) == (1, Sampling())
  (prompt,) = call.prompts
  assert prompt.endswith("Where does Anna Berg live ? In")


def test_every_field_arrives():
  call = read(
    prompt="Hi",
    model="m",
    temperature=0.5,
    top_p=0.9,
    top_k=5,
    min_p=0.1,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=-0.3,
    logit_bias={"7": -100},
    seed=-1,
    logprobs=3,
    max_tokens=2,
    n=2,
    stop=["x", "y"],
    stream=True,
    stream_options={"include_usage": True},
    user="somebody",
    echo=False,
    best_of=1,
  )
  assert call.sampling == Sampling(
    temperature=0.5,
    top_p=0.9,
    top_k=5,
    min_p=0.1,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=-0.3,
    logit_bias={7: -100.0},
    seed=2**32 - 1,
    best=3,
  )
  assert (call.max_tokens, call.samples, call.stops) == (2, 2, ("x", "y"))
  assert (call.stream, call.usage, call.best) == (True, True, 3)


def test_a_chat_says_whether_and_how_many_logprobs():
  assert talk().best is None
  assert talk(logprobs=True).best == 0
  call = talk(logprobs=True, top_logprobs=4, max_completion_tokens=3)
  assert (call.best, call.sampling.best, call.max_tokens) == (4, 4, 3)


def test_where_both_are_allowed_the_field_decides():
  content = b'{"prompt": "messages"}'
  assert read_call(content, "m", chat=None).prompts == ("messages",)
  content = b'{"messages": [{"role": "user", "content": "prompt"}]}'
  assert read_call(content, "m", chat=None).chat


def test_texts_in_parts_are_one_text():
  parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
  call = talk(messages=[{"role": "user", "content": parts}])
  (prompt,) = call.prompts
  assert prompt == Conversation([{"role": "user", "content": "ab"}])


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    (b"", "the body is not JSON: "),
    (b"{", "the body is not JSON: "),
    (b"\xff{}", "the body is not UTF-8."),
    (b"[" * 100_000, "the body is nested too deeply."),
    (b"[1]", "the body is an array; it must be an object."),
    (b"null", "the body is null; it must be an object."),
    (b'{"n": ' + b"9" * 5000 + b"}", "the body holds a number of too many"),
    (b'{"prompt": NaN}', "it holds NaN, which JSON has not"),
    (
      rb'{"prompt": "\ud800"}',
      "prompt holds half of a character, or bytes that are not UTF-8.",
    ),
  ],
)
def test_a_body_that_is_none_is_refused(content, sentence):
  with pytest.raises(ValueError) as caught:
    read_call(content, "m", chat=False)
  assert sentence in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("body", "sentence"),
  [
    ({"model": "x"}, "model is 'x'; the only one here is 'm'."),
    ({"prompt": None}, "prompt is None; it must be a text, a list of ids"),
    ({"prompt": 3}, "prompt is 3; it must be a text"),
    ({"prompt": []}, "prompt is []; it must be"),
    ({"prompt": [[]]}, "prompt is [[]]; it must be"),
    ({"prompt": ["a", 1]}, "prompt is ['a', 1]; it must be"),
    ({"prompt": ["a"] * 17}, "prompt holds 17 prompts; a call has at most 16"),
    ({"n": 0}, "n is 0; it must be an integer from 1 to 16."),
    ({"n": True}, "n is True; it must be an integer"),
    ({"prompt": ["a"] * 9, "n": 2}, "n is 2 for 9 prompts; a call has at most"),
    ({"max_tokens": 0}, "max_tokens is 0; it must be an integer from 1"),
    ({"max_tokens": "5"}, "max_tokens is '5'; it must be an integer"),
    ({"temperature": -1}, "temperature is -1.0; it must be a number"),
    ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    ({"top_p": 0}, "top_p is 0.0; it must be a number, above 0"),
    ({"seed": 1.5}, "seed is 1.5; it must be an integer."),
    ({"logit_bias": {"x": 1}}, "logit_bias is {'x': 1}; it must map ids"),
    ({"logit_bias": [1]}, "logit_bias is [1]; it must map ids"),
    ({"temperature": 10**400}, "temperature is inf; it must be a number"),
    ({"logit_bias": {"1": "x"}}, "logit_bias is {'1': 'x'}; it must map"),
    ({"stop": 5}, "stop is 5; it must be a string"),
    ({"stop": [None]}, "stop holds None; it must hold strings alone."),
    ({"stop": ["x"] * 17}, "stop has 17 strings; it may have 16."),
    ({"stream": "yes"}, "stream is 'yes'; it must be true or false."),
    ({"stream_options": 1}, "stream_options is 1; it must be an object."),
    ({"logprobs": 21}, "logprobs is 21; it must be an integer from 0 to 20."),
    ({"echo": True}, "echo is True; this is not done here."),
    ({"best_of": 3}, "best_of is 3; this is not done here."),
    ({"a b": 1}, "'a b' is 1; this is not done here."),
  ],
)
def test_a_completion_that_cannot_be_meant_is_refused(body, sentence):
  with pytest.raises(ValueError) as caught:
    read(**{"prompt": "Hi", **body})
  assert sentence in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("body", "sentence"),
  [
    ({"messages": []}, "messages is empty; a conversation has at least one."),
    ({"messages": "Hi"}, "messages is 'Hi'; it must be a list of messages."),
    ({"messages": ["Hi"]}, "messages[0] is 'Hi'; it must have a role"),
    (
      {"messages": [{"role": "user"}]},
      "messages[0] has the content None; it must be a text.",
    ),
    (
      {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
      "parts must be of type text.",
    ),
    (
      {"messages": [{"role": "user\ud800", "content": "Hi"}]},
      "messages[0] holds half of a character, or bytes that are not UTF-8.",
    ),
    ({"top_logprobs": 2}, "top_logprobs is 2; logprobs must be true with it."),
    ({"logprobs": 2}, "logprobs is 2; it must be true or false."),
    (
      {"max_tokens": 1, "max_completion_tokens": 2},
      "max_completion_tokens is 2; max_tokens is 1.",
    ),
    ({"tools": [{"type": "function"}]}, "tools is"),
    ({"response_format": {"type": "json_object"}}, "response_format is"),
  ],
)
def test_a_chat_that_cannot_be_meant_is_refused(body, sentence):
  with pytest.raises(ValueError) as caught:
    talk(**body)
  assert sentence in str(caught.value)
