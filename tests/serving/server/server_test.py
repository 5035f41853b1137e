"""The server in a process of its own, asked by OpenAI's client."""

import asyncio
import json
import signal
import time

import openai
import pytest

from sparse_prefix_jax.serving.server.app import PAGE_POLICY
from tests.serving.server.process import Server

FACTS = "Anna Berg lives in Oslo . It rained near Lima . " * 12
QUESTION = FACTS + "Where does Anna Berg live ? In"


@pytest.fixture(scope="module")
def server():
  one = Server()
  yield one
  one.end()


def completion(server, **options):
  options = {"prompt": QUESTION, "max_tokens": 6, "temperature": 0} | options
  return server.client.completions.create(model=server.model, **options)


def test_a_text_is_completed_and_the_model_is_named(server):
  (model,) = server.client.models.list().data
  assert model.id == server.model
  out = completion(server, max_tokens=1)
  assert out.choices[0].text == "Oslo"
  assert out.choices[0].finish_reason == "length"
  assert out.usage.completion_tokens == 1
  assert json.loads(server.send("GET", "/health")[1]) == {"status": "ok"}


def test_a_prefix_is_restored_and_changes_no_letter(server):
  first = completion(server, prompt="Once . " + QUESTION)
  again = completion(server, prompt="Once . " + QUESTION)
  assert first.usage.prompt_tokens_details.cached_tokens == 0
  assert again.usage.prompt_tokens_details.cached_tokens >= 64
  assert again.choices[0].text == first.choices[0].text


def test_a_stream_is_the_answer_in_pieces(server):
  options = {"temperature": 1, "seed": 5, "n": 2, "logprobs": 2}
  whole = completion(server, **options)
  texts, tokens, last = ["", ""], [[], []], None
  stream = completion(
    server, stream=True, stream_options={"include_usage": True}, **options
  )
  for chunk in stream:
    last = chunk
    assert "usage" in chunk.model_fields_set
    for choice in chunk.choices:
      texts[choice.index] += choice.text
      tokens[choice.index] += choice.logprobs.token_logprobs
  assert texts == [choice.text for choice in whole.choices]
  assert tokens == [c.logprobs.token_logprobs for c in whole.choices]
  assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_a_chat_goes_on_from_what_it_was(server):
  chat = server.client.chat.completions
  messages = [{"role": "user", "content": QUESTION}]
  options = {"model": server.model, "max_tokens": 4, "temperature": 0}
  first = chat.create(messages=messages, **options)
  said = first.choices[0].message
  assert said.role == "assistant"
  messages += [
    {"role": "assistant", "content": said.content},
    {"role": "user", "content": "And ?"},
  ]
  second = chat.create(
    messages=messages, logprobs=True, top_logprobs=2, **options
  )
  assert second.usage.prompt_tokens_details.cached_tokens >= 64
  assert len(second.choices[0].logprobs.content[0].top_logprobs) == 2
  pieces = [
    chunk.choices[0].delta.content or ""
    for chunk in chat.create(messages=messages, stream=True, **options)
    if chunk.choices
  ]
  assert "".join(pieces) == second.choices[0].message.content
  empty = json.dumps({"messages": [{"role": "user", "content": ""}]}).encode()
  _, content = server.send("POST", "/v1/chat/completions", empty)
  assert "the text of messages is empty; a prompt has at least one" in content


def test_a_stop_string_ends_an_answer_before_it(server):
  whole = completion(server, max_tokens=8).choices[0].text
  stop = whole.split()[3]
  out = completion(server, max_tokens=8, stop=[stop])
  assert out.choices[0].text == whole[: whole.index(stop)]
  assert out.choices[0].finish_reason == "stop"


def test_64_clients_get_what_each_would_alone(server):
  prompts = [f"{QUESTION} {word} {i}" for i in range(16) for word in "abcd"]

  async def ask(client, i):
    out = await client.completions.create(
      model=server.model, prompt=prompts[i], max_tokens=4, seed=i
    )
    return out.choices[0].text

  async def ask_all():
    async with server.client_of(openai.AsyncOpenAI) as client:
      return await asyncio.gather(*(ask(client, i) for i in range(64)))

  together = asyncio.run(ask_all())
  for i in (0, 17, 42, 63):
    alone = completion(
      server, prompt=prompts[i], max_tokens=4, temperature=1, seed=i
    )
    assert alone.choices[0].text == together[i]


def test_who_hangs_up_ends_the_answer(server):
  steps = server.figure("sparse_prefix_server_steps_total")
  stream = completion(server, max_tokens=3000, stream=True)
  next(iter(stream))
  stream.close()
  deadline = time.monotonic() + 60
  while server.figure("sparse_prefix_server_running"):
    assert time.monotonic() < deadline
  assert server.figure("sparse_prefix_server_steps_total") - steps < 1000


@pytest.mark.parametrize(
  ("body", "sentence"),
  [
    (b"x" * 100 * 2**20, "the body has more than 16777216 bytes."),
    (b'{"prompt": "\xff"}', "the body is not UTF-8."),
    (b"[]", "the body is an array; it must be an object."),
    (b'{"prompt": 7}', "prompt is 7; it must be a text"),
    (b'{"prompt": [123456]}', "prompt holds id 123456; the vocabulary is 0"),
    (b'{"prompt": ["a", ""]}', "prompt[1] is empty; a prompt has at least"),
    (b'{"prompt": "a", "model": "x"}', "model is 'x'; the only one here is"),
    (
      json.dumps({"prompt": "Anna " * 20_000}).encode(),
      "prompt has 20001 tokens; max_length of the model's",
    ),
    (b'{"prompt": "a", "max_tokens": 100000}', "max_length"),
    (b'{"prompt": ""}', "prompt is empty; a prompt has at least one token."),
  ],
)
def test_what_cannot_be_meant_is_told_in_a_sentence(server, body, sentence):
  reply, content = server.send("POST", "/v1/completions", body)
  error = json.loads(content)["error"]
  assert reply.status == 400
  assert sentence in error["message"]
  assert "\n" not in error["message"]


def test_other_paths_are_not_known(server):
  reply, content = server.send("GET", "/v2")
  assert (reply.status, json.loads(content)["error"]["message"]) == (
    404,
    "GET /v2 is not known here.",
  )
  reply, content = server.send("GET", "/v1/completions")
  assert (reply.status, reply.headers["allow"]) == (405, "POST")
  for path in ("/" + "a" * 5000, "/v1/models/" + "a" * 5000):
    assert len(server.send("GET", path)[1]) < 500


def test_the_page_needs_nothing_else(server):
  reply, page = server.send("GET", "/")
  assert reply.status == 200 and reply.headers["content-type"].startswith(
    "text/html"
  )
  assert reply.headers["content-security-policy"] == PAGE_POLICY
  assert "http://" not in page and "https://" not in page
  body = json.dumps({"prompt": "Where . " + QUESTION}).encode()
  server.send("POST", "/v1/completions", body)
  _, content = server.send("POST", "/v1/states", body)
  (found,) = json.loads(content)["data"]
  assert found["state_positions"]
  assert found["restored_tokens"] == found["state_positions"][-1]


def test_a_signal_lets_what_runs_finish(server):
  stream = completion(server, max_tokens=100, stream=True)
  pieces = iter(stream)
  next(pieces)
  server.process.send_signal(signal.SIGTERM)
  (*_, last) = pieces
  assert last.choices[0].finish_reason == "length"
  assert server.process.wait(timeout=120) == 0
  with pytest.raises(openai.APIConnectionError):
    completion(server)


def test_what_is_compiled_is_told_before_the_address():
  one = Server("--warm_up=true")
  status = one.send("GET", "/health")[0].status
  one.client.close()
  one.process.send_signal(signal.SIGTERM)
  _, told = one.process.communicate(timeout=120)
  assert (status, one.process.returncode) == (200, 0)
  *prefills, step = told.splitlines()
  assert step == "compiling a step of 4 requests"
  assert prefills[0] == "compiling prefill of 1 x 64 tokens"
