"""Decoding of the 0.8B layer group, against transformers on PyTorch.

    python -m benchmarks.decode_against_transformers --output=FILE.json

One process, the same weights and threads. Both sides begin with the same prompt
for every sequence of the batch and take the most probable ids; ours is a
`Scheduler`, which dispatches a step before it has read the ids of the one
before. They take turns, some steps each. Ours includes the canonical chunks: a
completed chunk is run once more by the prefill program, so that its state can
be shared. Their cost is what the steps that complete a chunk take beyond an
ordinary step. llama.cpp takes its turn too, where its Python binding is
installed. Needs the extra `parity`.
"""

import os
import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import trange

from benchmarks import command_line
from benchmarks.record import write_result
from benchmarks.sides import (
  OtherModel,
  OurAnswers,
  TheirAnswers,
  other_models,
  same_until,
)
from sparse_prefix_jax import load_pretrained, preset

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
_LADDER = flags.DEFINE_list(
  "ladder", None, "Our rungs, in chunks; the model's own if not given."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


_BLOCKS = 4
"""Turns that the two sides take."""


def _measure(
  directory: str, others: Mapping[str, OtherModel], context: int, batch: int
) -> dict[str, Any]:
  """All sides in turns, after steps that compile and warm up."""
  prompt = np.random.default_rng(context).integers(0, 512, context)
  own, _ = load_pretrained(
    directory,
    decode_rows=max(2, batch),
    dtype=_DTYPE.value,
    **command_line.rungs(_LADDER),
  )
  ours = OurAnswers(own, prompt.astype(np.int32), batch, _STEPS.value)
  theirs = {x: TheirAnswers(y, prompt, batch) for x, y in others.items()}
  for side in theirs.values():
    side.run(2)
  times: dict[str, list[float]] = {name: [] for name in ("ours", *theirs)}
  begun = len(ours.ids[0])
  for _ in trange(_BLOCKS, desc=f"{context} tokens, {batch} sequences"):
    times["ours"] += ours.run(_STEPS.value // _BLOCKS)
    for name, side in theirs.items():
      times[name] += side.run(_STEPS.value // _BLOCKS)
  same = {name: same_until(ours, side) for name, side in theirs.items()}
  return _row(context + begun, batch, times, same)


def _row(
  length: int, batch: int, times: dict[str, list[float]], same: dict[str, int]
) -> dict[str, Any]:
  """Rates of a batch, whose sequences have that many tokens at first."""
  chunk, mine = 64, times["ours"]
  completes = [(length + i + 1) % chunk == 0 for i in range(len(mine))]
  ordinary = statistics.median(t for t, c in zip(mine, completes) if not c)
  seconds = {name: statistics.median(times[name]) for name in same}
  # Ours with its canonical chunks, which are not in every step.
  seconds |= {"ours": statistics.fmean(mine)}
  row = {
    "context": length,
    "batch": batch,
    "steps": len(mine),
    **{f"{x}_tokens_per_second": batch / y for x, y in seconds.items()},
    "times_as_fast": seconds["transformers"] / seconds["ours"],
    "ours_median_step_seconds": ordinary,
    "transformers_median_step_seconds": seconds["transformers"],
    "canonical_share": max(0.0, 1 - ordinary / seconds["ours"]),
    "same_ids_until": same["transformers"],
  }
  told = ", ".join(f"{x} {batch / y:.1f}" for x, y in seconds.items())
  print(
    f"{length:6d} tokens, {batch:2d} sequences: {told} tokens/s,"
    f" {row['times_as_fast']:.2f} times as fast as transformers; canonical"
    f" chunks {row['canonical_share']:.1%}; the same ids for {same}"
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
    command_line.rungs(_LADDER)
    command_line.writable(_OUTPUT)
    command_line.installed("torch", "transformers")
  with tempfile.TemporaryDirectory() as directory:
    others = other_models(
      directory,
      threads=int(_THREADS.value or 1),
      dtype=str(_DTYPE.value),
      device=str(_DEVICE.value),
      longest=max(contexts) + _STEPS.value + 64,
      batch=max(batches),
    )
    rows = [
      _measure(directory, others, context, batch)
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
