"""Decoding of the 0.8B layer group, against transformers on PyTorch.

    python -m benchmarks.decode_against_transformers --output=FILE.json

One process, the same weights and threads. Both sides begin with the same prompt
for every sequence of the batch and take the most probable ids; ours is a
`Scheduler`, which dispatches a step before it has read the ids of the one
before. They take turns, some steps each. Ours includes the canonical chunks: a
completed chunk is run once more by the prefill program, so that its state can
be shared. Their cost is what the steps that complete a chunk take beyond an
ordinary step. Needs the extra `parity`.
"""

import os
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags
from tqdm import trange

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax import (
  PrefixCache,
  RequestHandle,
  Scheduler,
  TokenEvent,
  load_pretrained,
  preset,
)
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes

_CONTEXTS = flags.DEFINE_list(
  "contexts", ["1024", "8192"], "Tokens before decoding."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "4", "16"], "Sequences.")
_STEPS = flags.DEFINE_integer("steps", 64, "Decoded tokens per sequence.", 4)
_THREADS = flags.DEFINE_integer("threads", os.cpu_count() or 1, "Theirs.", 1)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of both sides."
)
_DEVICE = flags.DEFINE_string("device", "cpu", "Theirs, as PyTorch names it.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


_BLOCKS = 4
"""Turns that the two sides take."""


class Ours:
  """A batch of requests with one prompt, that answer together."""

  def __init__(self, directory: str, prompt: np.ndarray, batch: int) -> None:
    self.model, config = load_pretrained(
      directory, decode_rows=max(2, batch), dtype=_DTYPE.value
    )
    chunk = config.numerics.chunk
    pages = -(-(prompt.size + _STEPS.value) // chunk) + 1
    states = (2 * batch + 8) * state_bytes(config)
    room = states + (pages + 2) * (batch + 2) * page_bytes(config)
    self.cache = PrefixCache(
      self.model, capacity=room, state_share=states / room
    )
    self.scheduler = Scheduler(
      self.model,
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
    self.rows = {
      self._submit(prompt, _STEPS.value + 2): row for row in range(batch)
    }
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


class Theirs:
  """The same batch as transformers decodes it."""

  def __init__(self, model: Any, prompt: np.ndarray, batch: int) -> None:
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


def _measure(
  directory: str, model: Any, context: int, batch: int
) -> dict[str, Any]:
  """Both sides in turns, after steps that compile and warm up."""
  prompt = np.random.default_rng(context).integers(0, 512, context)
  ours = Ours(directory, prompt.astype(np.int32), batch)
  theirs = Theirs(model, prompt, batch)
  theirs.run(2)
  mine, other, begun = [], [], len(ours.ids[0])
  for _ in trange(_BLOCKS, desc=f"{context} tokens, {batch} sequences"):
    mine += ours.run(_STEPS.value // _BLOCKS)
    other += theirs.run(_STEPS.value // _BLOCKS)
  told = min(len(ours.ids[0]), len(theirs.ids))
  agree = [a == b[0] for a, b in zip(ours.ids[0][:told], theirs.ids)]
  same = agree.index(False) if False in agree else told
  return _row(context + begun, batch, mine, other, same)


def _row(
  length: int, batch: int, mine: list[float], other: list[float], same: int
) -> dict[str, Any]:
  """Rates of a batch, whose sequences have that many tokens at first."""
  chunk = 64
  completes = [(length + i + 1) % chunk == 0 for i in range(len(mine))]
  ordinary = statistics.median(t for t, c in zip(mine, completes) if not c)
  seconds, theirs = statistics.fmean(mine), statistics.median(other)
  row = {
    "context": length,
    "batch": batch,
    "steps": len(mine),
    "ours_tokens_per_second": batch / seconds,
    "transformers_tokens_per_second": batch / theirs,
    "times_as_fast": theirs / seconds,
    "ours_median_step_seconds": ordinary,
    "transformers_median_step_seconds": theirs,
    "canonical_share": max(0.0, 1 - ordinary / seconds),
    "same_ids_until": same,
  }
  print(
    f"{length:6d} tokens, {batch:2d} sequences: ours {batch / seconds:7.1f}, "
    f"transformers {batch / theirs:7.1f} tokens/s, {theirs / seconds:.2f} "
    f"times as fast; canonical chunks {row['canonical_share']:.1%}; the same "
    f"ids for {same}"
  )
  return row


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    longest = (
      preset("qwen3_5_0_8b_group").numerics.max_length - _STEPS.value - 64
    )
    contexts = command_line.whole_numbers(_CONTEXTS, most=longest)
    batches = command_line.whole_numbers(_BATCHES)
    command_line.writable(_OUTPUT)
    command_line.installed("torch", "transformers")
  from benchmarks.transformers_model import Transformers, write_checkpoint

  with tempfile.TemporaryDirectory() as directory:
    write_checkpoint(directory)
    theirs = Transformers(
      directory, int(_THREADS.value or 1), _DTYPE.value, _DEVICE.value
    )
    rows = [
      _measure(directory, theirs, context, batch)
      for context in contexts
      for batch in batches
    ]
  if _OUTPUT.value:
    result = {
      "threads": int(_THREADS.value or 1),
      "dtype": _DTYPE.value,
      "device": _DEVICE.value,
      "rows": rows,
    }
    write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
