"""Peers under the same load: who else answers, or why not.

`transformers` runs the checkpoint on PyTorch, one request after another, each
from its first token to its last: what it keeps, it keeps within a request.
Batches of prompts of several lengths would have to be padded, and would wait
for each other. `llama_cpp`, the Python binding of llama.cpp, takes files in a
format of its own, which nobody writes for the layer group.
"""

import collections
import importlib.util
import os
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

from benchmarks.serving_load import Answering, Arrival

PEERS = ("transformers", "llama_cpp")
PRESET = "qwen3_5_0_8b_group"
"""What the checkpoint of both sides is."""


class OneByOne(Protocol):
  """A model that goes on from what it returned."""

  def prefill(self, prompts: np.ndarray) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of the last tokens, and what to go on with."""
    ...

  def decode(self, tokens: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of one more token each, and what to go on with."""
    ...


MakePeer: TypeAlias = Callable[[int], Answering]
"""Makes a peer whose answers have so many ids."""


class Peer(Answering):
  """One request after another, with nothing kept between them.

  Args:
    model: What answers.
    answer: Ids of an answer.
  """

  def __init__(self, model: OneByOne, answer: int) -> None:
    super().__init__()
    self._model, self._answer = model, answer
    self._waiting: collections.deque[dict[str, Any]] = collections.deque()
    self._past_of_first: Any = None

  @property
  def idle(self) -> bool:
    """Whether nobody waits for anything."""
    return not self._waiting

  def submit(self, arrival: Arrival, now: float) -> None:
    """A request waits behind all others."""
    asked = self.begin(arrival, now)
    asked |= {"restored": 0, "computed": asked["prompt"].size}
    self._waiting.append(asked)

  def step(self, now: Callable[[], float]) -> None:
    """The prompt of the first one, or one more id of its answer."""
    asked = self._waiting[0]
    if asked["ids"]:
      last = np.array(asked["ids"][-1:])
      logits, past = self._model.decode(last, self._past_of_first)
    else:
      logits, past = self._model.prefill(asked["prompt"][None])
    self._past_of_first = past
    asked["ids"].append(int(logits[0].argmax()))
    asked.setdefault("first", now())
    if len(asked["ids"]) == self._answer:
      self._past_of_first = None
      self.finish(self._waiting.popleft(), now())


def why_not(name: str, preset: str) -> str | None:
  """Why a peer cannot serve a model; None where it can.

  Args:
    name: Of `PEERS`.
    preset: Of the model.
  """
  needed = {"transformers": ("torch", "transformers")}.get(name, (name,))
  missing = [x for x in needed if importlib.util.find_spec(x) is None]
  if missing:
    return f"{missing[0]} is not installed"
  if name == "llama_cpp":
    return "it takes GGUF files, and the layer group has none"
  if preset != PRESET:
    return f"both sides have a checkpoint of {PRESET} alone"
  return None


def transformers_peer(directory: str, dtype: str) -> MakePeer:
  """Loads a checkpoint into transformers, with all cores.

  Args:
    directory: With config.json and weights.
    dtype: Of weights and activations.
  """
  from benchmarks.transformers_model import Transformers

  model = Transformers(directory, os.cpu_count() or 1, dtype)
  return lambda answer: Peer(model, answer)
