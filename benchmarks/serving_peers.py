"""Peers under the same load: who else answers, or why not.

`transformers` runs the checkpoint on PyTorch and `llama_cpp` the same weights
by the Python binding of llama.cpp, one request after another, each from its
first token to its last: what they keep, they keep within a request. Batches of
prompts of several lengths would have to be padded, and would wait for each
other.
"""

import collections
import os
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import numpy as np

from benchmarks import command_line
from benchmarks.serving_load import Answering, Arrival
from benchmarks.sides import OtherModel, other_models

PEERS = {
  "transformers": ("torch", "transformers"),
  "llama_cpp": ("llama_cpp", "gguf", "torch", "transformers"),
}
"""What each needs installed; transformers writes the checkpoint of both."""

PRESET = "qwen3_5_0_8b_group"
"""What the checkpoint of both sides is."""


MakePeer: TypeAlias = Callable[[int], Answering]
"""Makes a peer whose answers have so many ids."""


class Peer(Answering):
  """One request after another, with nothing kept between them.

  Args:
    model: What answers.
    answer: Ids of an answer.
  """

  def __init__(self, model: OtherModel, answer: int) -> None:
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
  missing = [x for x in PEERS[name] if not command_line.has(x)]
  if missing:
    return f"{missing[0]} is not installed"
  if preset != PRESET:
    return f"both sides have a checkpoint of {PRESET} alone"
  return None


def make_peers(
  names: Collection[str], directory: str, dtype: str, longest: int
) -> dict[str, MakePeer]:
  """What makes each peer, around one checkpoint, with all cores.

  Args:
    names: Of `PEERS`, of those that can serve.
    directory: Gets the checkpoint.
    dtype: Of weights and activations.
    longest: Tokens of the longest request, its answer included.
  """
  threads = os.cpu_count() or 1
  others = other_models(
    directory,
    threads=threads,
    dtype=dtype,
    device="cpu",
    longest=longest,
    names=names,
  )
  return {
    name: lambda answer, name=name: Peer(others[name], answer) for name in names
  }
