"""Decoding of the 0.8B layer group, against transformers on PyTorch.

    python -m benchmarks.decode_against_transformers --output=FILE.json

One process, the same weights and threads. Both sides begin with the same prompt
for every sequence of the batch; then each decodes as many tokens as asked for,
step by step in turn. Ours includes the canonical chunks: a completed chunk is
run once more by the prefill program, so that its state can be shared. Their
cost is what the steps that complete a chunk take beyond an ordinary step. Needs
the extra `parity`.
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
  decode,
  load_pretrained,
  prefill,
  preset,
)
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes

_CONTEXTS = flags.DEFINE_list(
  "contexts", ["1024", "8192"], "Tokens before decoding."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "4", "16"], "Sequences.")
_STEPS = flags.DEFINE_integer("steps", 64, "Decoded tokens per sequence.", 2)
_THREADS = flags.DEFINE_integer("threads", os.cpu_count() or 1, "Theirs.", 1)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of both sides."
)
_DEVICE = flags.DEFINE_string("device", "cpu", "Theirs, as PyTorch names it.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


class Ours:
  """A batch of running sequences with one prompt."""

  def __init__(self, directory: str, prompt: np.ndarray, batch: int) -> None:
    self.model, config = load_pretrained(
      directory, decode_rows=max(2, batch), dtype=_DTYPE.value
    )
    pages = -(-(prompt.size + _STEPS.value) // config.numerics.chunk)
    states = (2 * batch + 8) * state_bytes(config)
    room = states + (pages + 2) * (batch + 2) * page_bytes(config)
    self.cache = PrefixCache(
      self.model, capacity=room, state_share=states / room
    )
    # Compiles the program that makes that many chunks canonical.
    shape = (batch, config.numerics.chunk)
    chunks = np.random.default_rng(1).integers(0, 512, shape)
    warm = prefill(self.model, self.cache, list(chunks))
    self.cache.release(warm.sequences)
    out = prefill(self.model, self.cache, [prompt] * batch)
    self.sequences = out.sequences

  def step(self, tokens: np.ndarray) -> np.ndarray:
    """Logits of one more token each. [b vocab]"""
    out = decode(self.model, self.cache, self.sequences, tokens)
    self.sequences = out.sequences
    # Canonical chunks give nothing to the host, so nothing waits for them.
    jax.block_until_ready(self.cache.pools)
    return out.logits


def _measure(
  directory: str, theirs: Any, context: int, batch: int
) -> dict[str, Any]:
  """Both sides, step by step in turn; the first step compiles."""
  rng = np.random.default_rng(context)
  prompt = rng.integers(0, 512, context)
  ours = Ours(directory, prompt, batch)
  _, past = theirs.prefill(prompt[None])
  theirs.widen(past, batch)
  mine, other, difference = [], [], 0.0
  for _ in trange(_STEPS.value, desc=f"{context} tokens, {batch} sequences"):
    tokens = rng.integers(0, 512, batch)
    start = time.perf_counter()
    logits = ours.step(tokens)
    middle = time.perf_counter()
    expected, past = theirs.decode(tokens, past)
    end = time.perf_counter()
    mine.append(middle - start)
    other.append(end - middle)
    difference = max(difference, float(np.abs(logits - expected).max()))
  return _row(context, batch, mine, other, difference)


def _row(
  context: int,
  batch: int,
  mine: list[float],
  other: list[float],
  difference: float,
) -> dict[str, Any]:
  """Rates of a batch. A chunk counts as often as it fills in these steps."""
  chunk = 64
  completes = [(context + i + 1) % chunk == 0 for i in range(len(mine))]
  ordinary = statistics.median(
    t for t, c in list(zip(mine, completes))[1:] if not c
  )
  extra = sum(t - ordinary for t, c in zip(mine, completes) if c)
  canonical = extra / (extra + ordinary * len(mine))
  seconds = ordinary + extra / len(mine)
  theirs = statistics.median(other[1:])
  row = {
    "context": context,
    "batch": batch,
    "steps": len(mine),
    "ours_tokens_per_second": batch / seconds,
    "transformers_tokens_per_second": batch / theirs,
    "times_as_fast": theirs / seconds,
    "ours_median_step_seconds": ordinary,
    "transformers_median_step_seconds": theirs,
    "canonical_share": canonical,
    "max_logit_difference": difference,
  }
  print(
    f"{context:6d} tokens, {batch:2d} sequences: ours {batch / seconds:7.1f}, "
    f"transformers {batch / theirs:7.1f} tokens/s, {theirs / seconds:.2f} "
    f"times as fast; canonical chunks {canonical:.1%}"
  )
  return row


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    longest = preset("qwen3_5_0_8b_group").numerics.max_length - _STEPS.value
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
