"""What ends an answer, a command or a client ends nothing else."""

import asyncio
import gc
import json
import threading
import weakref

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from starlette.testclient import TestClient

from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
from sparse_prefix_jax.serving.scheduler import Scheduler
from sparse_prefix_jax.serving.server.app import make_app
from sparse_prefix_jax.serving.server.calls import read_call
from sparse_prefix_jax.serving.server.pieces import OTHER_WEIGHTS
from sparse_prefix_jax.serving.server.service import Service, ShutDownError
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer
from sparse_prefix_jax.workloads.recall.tokenizer import recall_tokenizer

PROMPT = {"prompt": "Anna lives in Oslo .", "max_tokens": 2, "temperature": 0}
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def model():
  config = preset("tiny", vocab_size=704, ladder=(1,), max_length=1024)
  return HybridDecoder(config, rngs=nnx.Rngs(0))


@pytest.fixture
def service(model):
  cache = PrefixCache(model, capacity="16MiB")
  tokenizer = TextTokenizer(recall_tokenizer())
  return Service(model, cache, tokenizer, Scheduler(model, cache))


def text_of(client, **options):
  reply = client.post(COMPLETIONS, json=PROMPT | options)
  assert reply.status_code == 200
  return reply.json()["choices"][0]["text"]


def call_of(**options):
  content = json.dumps(PROMPT | options).encode()
  return read_call(content, "m", chat=False)


def streamed(client, body):
  """The choices of a stream, as they come."""
  reply = client.post(COMPLETIONS, json=body | {"stream": True})
  lines = [line for line in reply.text.split("\n") if line.startswith("data")]
  assert lines.pop() == "data: [DONE]"
  return [json.loads(line[len("data: ") :])["choices"][0] for line in lines]


@pytest.mark.parametrize("size", [1, 3])
def test_a_stop_string_that_the_last_token_completes(service, size):
  """The token and the end come in one step: nothing is left to cancel."""
  with TestClient(make_app(service, "m")) as client:
    text = text_of(client, max_tokens=size)
    body = PROMPT | {"max_tokens": size, "stop": text[-4:]}
    (choice,) = client.post(COMPLETIONS, json=body).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[:-4], "stop")
    pieces = streamed(client, body)
    assert "".join(piece["text"] for piece in pieces) == text[:-4]
    assert pieces[-1]["finish_reason"] == "stop"
    # It serves on.
    assert client.get("/health").json() == {"status": "ok"}
    assert text_of(client, max_tokens=size) == text


def test_who_hangs_up_during_a_step_that_fails(service, monkeypatch):
  """The step has finished the request and has not told so."""
  hung_up = asyncio.Event()

  def fail(*arguments):
    service._inbox.tell(lambda: service._cancel([*service._answers]))
    raise MemoryError("no room on the device")

  async def ask():
    asked = asyncio.ensure_future(anext(service.answer(call_of(), b"")))
    while not service.counts()["steps"] or service.counts()["running"]:
      await asyncio.sleep(0.01)
    asked.cancel()
    hung_up.set()

  with TestClient(make_app(service, "m")) as client:
    with monkeypatch.context() as patch:
      patch.setattr("sparse_prefix_jax.runtime.programs.decode_step", fail)
      asyncio.run(asyncio.wait_for(ask(), 60))
    assert hung_up.is_set() and client.get("/health").status_code == 200
    assert text_of(client)


def test_long_prompts_become_ids_while_others_are_answered(
  service, monkeypatch
):
  encode, threads = service.tokenizer.encode, []

  def encode_chat(messages, **variables):
    threads.append(threading.current_thread().name)
    assert variables == {"hint": "Tide"}
    return encode("Anna lives in Oslo ."), ()

  monkeypatch.setattr(service.tokenizer, "encode_chat", encode_chat)
  body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
  body["chat_template_kwargs"] = {"hint": "Tide"}
  with TestClient(make_app(service, "m")) as client:
    for path in ("/v1/chat/completions", "/v1/states"):
      assert client.post(path, json=body).status_code == 200
  assert len(threads) == 2 and "scheduler" not in threads


def test_who_goes_before_a_look_was_taken_ends_nothing(service):
  async def look():
    await asyncio.wait_for(service.states("Anna", b""), 0.05)

  with pytest.raises(TimeoutError):
    asyncio.run(look())  # Nobody obeys yet.
  with TestClient(make_app(service, "m")) as client:
    text_of(client)
    assert client.get("/health").status_code == 200


def test_an_answer_that_fails_is_told_and_ends_alone(service, monkeypatch):
  def fail(*arguments):
    raise ValueError("a tokenizer of the user's own")

  with TestClient(make_app(service, "m")) as client:
    with monkeypatch.context() as patch:
      patch.setattr(service.tokenizer, "decode", fail)
      reply = client.post(COMPLETIONS, json=PROMPT)
    assert reply.status_code == 500
    assert "of the user's own" in reply.json()["error"]["message"]
    text_of(client)
  assert service.cache.sequences == ()


def test_steps_that_always_fail_end_the_service_and_everybody_is_told(
  service, monkeypatch
):
  def fail(*arguments):
    raise RuntimeError("the device is gone")

  monkeypatch.setattr(service.cache, "move_if_due", fail)
  with TestClient(make_app(service, "m")) as client:
    reply = client.post(COMPLETIONS, json=PROMPT)
    assert reply.status_code == 500
    message = reply.json()["error"]["message"]
    assert message == "the server has failed: the device is gone."
    for reply in (
      client.get("/health"),
      client.post(COMPLETIONS, json=PROMPT),
      client.post("/v1/states", json=PROMPT),
    ):
      assert reply.status_code == 503
      assert reply.json()["error"]["message"] == message


def test_other_weights_end_what_runs_and_the_service_goes_on(
  model, monkeypatch
):
  """Who asks is told nothing of Python; other weights are answered then."""
  model = nnx.clone(model)
  cache = PrefixCache(model, capacity="16MiB")
  tokenizer = TextTokenizer(recall_tokenizer())
  service = Service(model, cache, tokenizer, Scheduler(model, cache))
  weight = model.branches[0].sub.out

  def change(token):  # When the first id is told.
    weight[...] = weight[...] + token
    return False

  with TestClient(make_app(service, "m")) as client:
    with monkeypatch.context() as patch:
      patch.setattr(tokenizer, "is_silent", change)
      begun = client.post(COMPLETIONS, json=PROMPT | {"max_tokens": 50})
    refused = client.post(COMPLETIONS, json=PROMPT)
    health = client.get("/health")
    replies = begun, refused, health
    assert [reply.status_code for reply in replies] == [500, 503, 503]
    for reply in replies:
      assert reply.json()["error"]["message"] == OTHER_WEIGHTS
    cache.replace_weights(model)
    assert client.get("/health").status_code == 200
    text_of(client)
    weight[...] = weight[...] + 1
    assert client.get("/health").status_code == 503
  assert cache.sequences == ()


def test_weights_that_were_replaced_take_no_memory(model):
  """A server that is given new ones now and then holds one model, not two."""
  first = jax.tree.map(jnp.copy, model)
  arrays = [weakref.ref(leaf) for leaf in jax.tree.leaves(first)]
  cache = PrefixCache(first, capacity="16MiB")
  tokenizer = TextTokenizer(recall_tokenizer())
  service = Service(first, cache, tokenizer, Scheduler(first, cache))
  del first
  other = HybridDecoder(model.config, rngs=nnx.Rngs(1))
  with TestClient(make_app(service, "m")) as client:
    text_of(client)
    cache.replace_weights(other)
    text_of(client)
    assert client.get("/health").status_code == 200
    gc.collect()
    assert all(array() is None for array in arrays)


def test_nobody_waits_for_a_service_that_has_ended(service):
  with TestClient(make_app(service, "m")):
    pass

  async def ask():
    await anext(service.answer(call_of(), b""))

  with pytest.raises(ShutDownError, match=r"the server has ended\."):
    asyncio.run(ask())


def test_an_application_can_be_started_again(service):
  app = make_app(service, "m")
  texts = []
  for _ in range(2):
    with TestClient(app) as client:
      texts.append(text_of(client))
      with pytest.raises(RuntimeError, match="runs already"):
        service.start()
  assert texts[0] == texts[1]


def test_who_names_no_seed_is_told_which_one_was_drawn(service):
  def ask(client, **options):
    body = PROMPT | {"max_tokens": 12, "temperature": 2.0, "n": 2} | options
    reply = client.post(COMPLETIONS, json=body).json()
    return reply["seed"], [one["text"] for one in reply["choices"]]

  with TestClient(make_app(service, "m")) as client:
    seed, texts = ask(client)
    assert texts[0] != texts[1]
    assert ask(client)[1] != texts
    assert ask(client, seed=seed) == (seed, texts)


def test_health_tells_that_it_is_starting_until_all_is_compiled(model):
  """A call that comes earlier is answered then."""
  go_on, stages, ready = threading.Event(), [], []

  def compiling(stage):
    stages.append(stage)
    assert go_on.wait(60)

  cache = PrefixCache(model, capacity="16MiB")
  service = Service(
    model,
    cache,
    TextTokenizer(recall_tokenizer()),
    Scheduler(model, cache),
    compiling=compiling,
    ready=lambda: ready.append(len(stages)),
  )
  with TestClient(make_app(service, "m")) as client:
    reply = client.get("/health")
    assert (reply.status_code, ready) == (503, [])
    assert reply.json()["error"]["message"] == "the server is starting."
    go_on.set()
    assert text_of(client)
    assert client.get("/health").status_code == 200
  assert ready == [2] and len(stages) == 2


def test_an_end_does_not_wait_for_what_would_be_compiled(model):
  cache = PrefixCache(model, capacity="16MiB")
  stages = []

  def compiling(stage):
    stages.append(stage)
    service._closing = True

  service = Service(
    model,
    cache,
    TextTokenizer(recall_tokenizer()),
    Scheduler(model, cache),
    compiling=compiling,
  )
  service.start()
  service.stop()
  assert len(stages) <= 1
  assert asyncio.run(service.refusal()) == "the server has ended."


def test_what_was_never_started_can_be_stopped(service):
  service.stop()
  assert service.counts()["steps"] == 0
