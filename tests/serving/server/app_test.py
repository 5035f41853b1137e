"""Who may ask, and how many: the application without a process."""

import pytest
from flax import nnx
from starlette.testclient import TestClient

from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
from sparse_prefix_jax.serving.scheduler import Scheduler
from sparse_prefix_jax.serving.server.app import make_app
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
    Scheduler(model, cache),
    max_waiting=2,
  )
  return make_app(service, "m", **options)


def test_a_burst_is_told_to_come_again(model):
  with TestClient(app_of(model)) as client:
    reply = client.post("/v1/completions", json=PROMPT | {"n": 3})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    error = reply.json()["error"]
    assert error["message"] == "0 requests wait; try again later."
    assert error["type"] == "rate_limit_error"
    assert client.post("/v1/completions", json=PROMPT).status_code == 200


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
