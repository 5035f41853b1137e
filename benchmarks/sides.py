"""The sides of a comparison: prompts and answers, ours and theirs.

All have the same weights and threads and take turns in one process, so that
what else the machine does meets all. The others are transformers on PyTorch
and, where its Python binding is installed, llama.cpp.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from benchmarks import command_line
from sparse_prefix_jax import (
  HybridDecoder,
  PrefixCache,
  RequestHandle,
  Scheduler,
  TokenEvent,
  prefill,
)
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes


class OtherModel(Protocol):
  """A model that goes on from what it returned."""

  def prefill(self, prompts: np.ndarray) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of the last tokens, and what to go on with."""
    ...

  def decode(self, tokens: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of one more token each, and what to go on with."""
    ...

  def widen(self, past: Any, batch: int) -> None:
    """Makes the past of one prompt that of `batch` sequences."""
    ...


def other_models(
  directory: str,
  *,
  threads: int,
  dtype: str,
  device: str,
  longest: int,
  batch: int = 1,
  names: Collection[str] = ("transformers", "llama_cpp"),
) -> dict[str, OtherModel]:
  """Who else runs the layer group, by name.

  Args:
    directory: Gets the checkpoint.
    threads: Theirs.
    dtype: Of weights and activations.
    device: As PyTorch names it.
    longest: Tokens of the longest sequence.
    batch: Sequences of the largest batch.
    names: Of those, who is asked for.
  """
  from benchmarks.transformers_model import Transformers, write_checkpoint

  write_checkpoint(directory)
  others: dict[str, OtherModel] = {}
  if "transformers" in names:
    others["transformers"] = Transformers(directory, threads, dtype, device)
  here = device == "cpu" and command_line.has("llama_cpp", "gguf")
  if "llama_cpp" in names and here:
    from benchmarks.gguf_file import write_gguf
    from benchmarks.llama_cpp_model import LlamaCpp

    path = write_gguf(directory, dtype)
    others["llama_cpp"] = LlamaCpp(path, threads, longest, batch)
  return others


def in_turn(
  sides: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
  """Seconds of each side's calls, one after the other, again and again.

  Args:
    sides: What is called, by name.
    repeats: Timed calls of each.
  """
  times: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(repeats):
    for name, run in sides.items():
      start = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - start)
  return times


class OurPrompts:
  """The library with a cache that keeps nothing between calls.

  Args:
    model: What answers.
    longest: Tokens of the longest prompt.
  """

  def __init__(self, model: HybridDecoder, longest: int) -> None:
    self.model, config = model, model.config
    room = 2 * -(-longest // config.numerics.chunk) * page_bytes(config)
    states = 8 * state_bytes(config)
    self.cache = PrefixCache(
      model,
      capacity=room + states,
      state_share=states / (room + states) if room else None,
      placement="no_cache",
    )

  def prefill(self, tokens: np.ndarray) -> np.ndarray:
    """Logits [vocab] of the last token, cold.

    Args:
      tokens: Ids. [t]
    """
    out = prefill(self.model, self.cache, [tokens])
    self.cache.release(out.sequences)
    return out.logits[0]


class OurAnswers:
  """A batch of requests with one prompt, that answer together.

  Args:
    model: What answers; it decodes as many rows as the batch has.
    prompt: Ids that all of them begin with. [t]
    batch: Requests.
    steps: Ids of each answer that will be asked for.
  """

  def __init__(
    self, model: HybridDecoder, prompt: np.ndarray, batch: int, steps: int
  ) -> None:
    config = model.config
    chunk = config.numerics.chunk
    pages = -(-(prompt.size + steps) // chunk) + 1
    states = (2 * batch + 8) * state_bytes(config)
    room = states + (pages + 2) * (batch + 2) * page_bytes(config)
    self.cache = PrefixCache(
      model,
      capacity=room,
      state_share=states / room if room > states else None,
    )
    self.scheduler = Scheduler(
      model,
      self.cache,
      max_running=batch,
      token_budget=max(config.numerics.ladder) * chunk,
    )
    # Compiles all that makes chunks canonical: as many as a rung takes.
    for rung in config.numerics.ladder:
      self._submit(np.full(rung * chunk, rung, np.int32), 2)
      while not self.scheduler.idle:
        self.scheduler.step()
    self.ids: list[list[int]] = [[] for _ in range(batch)]
    self.rows = {self._submit(prompt, steps + 2): row for row in range(batch)}
    while not all(self.ids):
      self._step()

  def run(self, steps: int) -> list[float]:
    """Seconds of each step; with the last one the device is done."""
    times = []
    for step in range(steps):
      start = time.perf_counter()
      self._step()
      if step == steps - 1:
        jax.block_until_ready(self.cache.pools)
      times.append(time.perf_counter() - start)
    return times

  def _submit(self, prompt: np.ndarray, tokens: int) -> RequestHandle:
    return self.scheduler.submit(prompt, max_tokens=tokens)

  def _step(self) -> None:
    for event in self.scheduler.step():
      if isinstance(event, TokenEvent):
        self.ids[self.rows[event.handle]].append(event.id)


class TheirAnswers:
  """The same batch as another model decodes it.

  Args:
    model: The other one.
    prompt: Ids that all of them begin with. [t]
    batch: Requests.
  """

  def __init__(self, model: OtherModel, prompt: np.ndarray, batch: int) -> None:
    logits, self._past = model.prefill(prompt[None])
    model.widen(self._past, batch)
    self._model = model
    self._tokens = np.repeat(logits.argmax(-1), batch)
    self.ids = [self._tokens]

  def run(self, steps: int) -> list[float]:
    """Seconds of each step."""
    times = []
    for _ in range(steps):
      start = time.perf_counter()
      logits, self._past = self._model.decode(self._tokens, self._past)
      self._tokens = logits.argmax(-1)
      times.append(time.perf_counter() - start)
      self.ids.append(self._tokens)
    return times


def same_until(ours: OurAnswers, theirs: TheirAnswers) -> int:
  """How many first ids of the first answer are the same on both sides.

  Args:
    ours: One side.
    theirs: The other.
  """
  told = min(len(ours.ids[0]), len(theirs.ids))
  agree = [a == b[0] for a, b in zip(ours.ids[0][:told], theirs.ids)]
  return agree.index(False) if False in agree else told
