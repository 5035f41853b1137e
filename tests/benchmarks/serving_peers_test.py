"""Peers answer the same users, one request after another."""

import itertools

import numpy as np
import pytest

from benchmarks import command_line, serving_peers
from benchmarks.serving_load import arrivals, serve, summary
from benchmarks.serving_peers import Peer
from tests.benchmarks.serving_load_test import LOAD


class Counting:
  """A model of a hundred ids: the one after the last, from what it has read."""

  def __init__(self):
    self.prompts = []

  def prefill(self, prompts):
    self.prompts.append(prompts[0].tolist())
    return self.decode(prompts[:, -1], ())

  def decode(self, tokens, past):
    after = (int(tokens[0]) + 1) % 100
    return np.eye(100)[[after]], (*past, after)


def test_every_request_is_computed_from_its_first_token():
  model = Counting()
  stream = [x._replace(at=0.0) for x in arrivals(LOAD, 1.0, 16.0)]
  served = serve(Peer(model, LOAD.answer), stream, 1e3)
  assert sorted(x.number for x in served) == [x.number for x in stream]
  for one, prompt in zip(served, model.prompts, strict=True):
    last = prompt[-1]
    assert one.ids == tuple((last + i) % 100 for i in (1, 2, 3))
    assert (one.restored, one.computed) == (0, len(prompt))
    assert one.arrived <= one.first <= one.last
  told = summary(served, len(stream))
  assert (told["answered"], told["restored_share"]) == (1, 0)


def test_a_conversation_goes_on_from_what_the_peer_said():
  model = Counting()
  stream = [x._replace(at=0.0) for x in arrivals(LOAD, 1.0, 60.0)]
  served = serve(Peer(model, LOAD.answer), stream, 1e3)
  talk = next(x.conversation for x in stream if x.conversation is not None)
  turns = [x.number for x in stream if x.conversation == talk]
  prompts = {x.number: p for x, p in zip(served, model.prompts)}
  answers = {x.number: list(x.ids) for x in served}
  for before, after in itertools.pairwise(turns):
    said = prompts[before] + answers[before]
    assert prompts[after][: len(said)] == said


@pytest.mark.parametrize(
  ("name", "preset", "installed", "why"),
  [
    ("transformers", serving_peers.PRESET, False, "torch is not installed"),
    ("llama_cpp", serving_peers.PRESET, False, "llama_cpp is not installed"),
    ("llama_cpp", serving_peers.PRESET, True, None),
    ("transformers", "tiny", True, "a checkpoint of qwen3_5_0_8b_group"),
    ("transformers", serving_peers.PRESET, True, None),
  ],
)
def test_a_peer_that_cannot_says_why(name, preset, installed, why, monkeypatch):
  monkeypatch.setattr(command_line, "has", lambda _: installed)
  told = serving_peers.why_not(name, preset)
  assert told is None if why is None else why in told
