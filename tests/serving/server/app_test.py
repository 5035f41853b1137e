"""Who may ask, and how many: the application without a process."""

import asyncio
import contextlib

import pytest
from flax import nnx
from starlette.testclient import TestClient

from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
from sparse_prefix_jax.serving.scheduler import Scheduler
from sparse_prefix_jax.serving.server.app import make_app
from sparse_prefix_jax.serving.server.calls import read_call
from sparse_prefix_jax.serving.server.service import Service
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer
from sparse_prefix_jax.workloads.recall.tokenizer import recall_tokenizer

PROMPT = {"prompt": "Anna lives in Oslo . " * 20, "max_tokens": 2}


@pytest.fixture(scope="module")
def model():
  return HybridDecoder(preset("tiny", vocab_size=704), rngs=nnx.Rngs(0))


def app_of(model, **options):
  cache = PrefixCache(model, capacity="16MiB")
  service = Service(
    model,
    cache,
    TextTokenizer(recall_tokenizer()),
    Scheduler(model, cache, max_running=2, max_waiting=1),
  )
  return make_app(service, "m", **options)


def test_a_model_is_found_by_its_name(model):
  with TestClient(app_of(model)) as client:
    (one,) = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/m").json() == one
    reply = client.get("/v1/models/org/other")
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == (
      "org/other is no model here; m is."
    )


def test_a_burst_is_told_to_come_again(model):
  with TestClient(app_of(model)) as client:
    reply = client.post("/v1/completions", json=PROMPT | {"n": 4})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    error = reply.json()["error"]
    assert error["message"] == (
      "0 requests run or wait, and 4 more find no place: max_running is 2 and "
      "max_waiting is 1."
    )
    assert error["type"] == "rate_limit_error"
    reply = client.post("/v1/completions", json=PROMPT | {"n": 3})
    assert reply.status_code == 200


def test_an_answer_without_a_bound_ends_where_the_room_does(model):
  """max_length is 4096; the cache has room for much less."""
  cache = PrefixCache(model, capacity="500KiB", placement="last")
  service = Service(
    model, cache, TextTokenizer(recall_tokenizer()), Scheduler(model, cache)
  )
  messages = [{"role": "user", "content": "Anna lives in Oslo ."}]
  with TestClient(make_app(service, "m")) as client:
    reply = client.post(
      "/v1/chat/completions", json={"messages": messages, "temperature": 0}
    )
  total = reply.json()["usage"]["total_tokens"]
  assert reply.status_code == 200
  assert reply.json()["choices"][0]["finish_reason"] == "length"
  pages = cache.store.index.budget.most_pages(2)
  assert total - 1 == pages * 64 < 4096


def test_a_key_is_needed_and_keeps_callers_apart(model):
  def cached(client, key):
    reply = client.post(
      "/v1/completions", json=PROMPT, headers={"Authorization": f"Bearer {key}"}
    )
    return reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

  with TestClient(app_of(model, keys=("one", "two"))) as client:
    for headers in ({}, {"Authorization": "Bearer three"}):
      for path in ("/v1/models", "/metrics"):
        reply = client.get(path, headers=headers)
        assert reply.status_code == 401
        assert reply.json()["error"]["message"] == (
          "the API key is missing or not known."
        )
      reply = client.post("/v1/completions", json=PROMPT, headers=headers)
      assert reply.status_code == 401
    assert client.get("/health").status_code == 200
    assert cached(client, "one") == 0
    assert cached(client, "one") > 0
    assert cached(client, "two") == 0


def test_an_error_of_a_step_is_told_and_the_next_call_is_answered(
  model, monkeypatch
):
  def fail(*arguments):
    raise MemoryError("no room on the device")

  with TestClient(app_of(model)) as client:
    with monkeypatch.context() as patch:
      patch.setattr("sparse_prefix_jax.runtime.programs.decode_step", fail)
      reply = client.post("/v1/completions", json=PROMPT)
    assert reply.status_code == 500
    assert client.post("/v1/completions", json=PROMPT).status_code == 200


def test_who_goes_before_it_was_submitted_leaves_nothing_running(model):
  call = read_call(
    b'{"prompt": "Anna lives in Oslo .", "max_tokens": 500}', "m", chat=False
  )
  cache = PrefixCache(model, capacity="16MiB")
  service = Service(
    model, cache, TextTokenizer(recall_tokenizer()), Scheduler(model, cache)
  )

  async def go():
    pieces = service.answer(call, b"")
    first = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
      await first
    service.start()  # It hears of the request only now.
    for _ in range(1000):
      await asyncio.sleep(0.01)
      if service.counts()["steps"] and cache.sequences == ():
        return

  try:
    asyncio.run(go())
    counts = service.counts()
    assert counts["waiting"] == counts["running"] == 0
    assert counts["steps"] < 100
  finally:
    service.stop()


@pytest.mark.parametrize(
  "body",
  [b'{"prompt": "Anna"}', b'{"prompt": "Anna", "stream": true}', b'{"prom'],
  ids=["whole", "streamed", "cut"],
)
def test_who_goes_while_waiting_gives_the_place_up(model, body):
  """Nobody steps, so nothing is told before the client has gone."""
  app, sent = app_of(model), []
  cut = not body.endswith(b"}")
  received = [{"type": "http.request", "body": body, "more_body": cut}]

  async def receive():
    if not received:
      await asyncio.sleep(0.1)
    return received.pop() if received else {"type": "http.disconnect"}

  async def send(message):
    sent.append(message)

  scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
  scope |= {"headers": [], "query_string": b""}
  asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))
  assert sent[0]["status"] == 499
  with TestClient(app) as client:  # Now somebody steps.
    reply = client.post("/v1/completions", json=PROMPT | {"n": 3})
    figures = client.get("/metrics").text.splitlines()
  assert reply.status_code == 200
  (requests,) = [x for x in figures if x.startswith("sparse_prefix_cache_requ")]
  assert requests.endswith(" 3")
