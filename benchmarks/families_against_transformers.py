"""A model of middling size of each family, against transformers on PyTorch.

    python -m benchmarks.families_against_transformers --output=FILE.json
    python -m benchmarks.families_against_transformers --experts=8,32,128

One process, the same random weights and threads, in turn. Of each family the
cold prefill of prompts and the decoding of batches that begin with one prompt;
both sides take the most probable ids. `--experts` measures instead how a
mixture of experts grows with their number, of which a token takes as many as
ever. Needs the extra `parity`.
"""

import os
import statistics
import tempfile
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import command_line
from benchmarks.record import write_result
from benchmarks.sides import (
  OurAnswers,
  OurPrompts,
  TheirAnswers,
  in_turn,
  same_until,
)
from sparse_prefix_jax import load_pretrained

_FAMILIES = flags.DEFINE_list("families", [], "Only these; all if empty.")
_LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096"], "Prompts in tokens.")
_CONTEXT = flags.DEFINE_integer("context", 1024, "Tokens before decoding.", 64)
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Sequences decoded.")
_STEPS = flags.DEFINE_integer("steps", 32, "Decoded tokens per sequence.", 8)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed prefills of each.", 1)
_EXPERTS = flags.DEFINE_list("experts", [], "Numbers of experts to grow over.")
_GROWING = "qwen3_5_moe"
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of both sides."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

_BLOCKS = 4
"""Turns that the two sides take at decoding."""


def _prompt(length: int) -> np.ndarray:
  ids = np.random.default_rng(length).integers(0, 512, length)
  return ids.astype(np.int32)


def _prefill_rows(
  directory: str, theirs: Any, lengths: list[int]
) -> list[dict[str, Any]]:
  """Both sides over each prompt, cold."""
  model, _ = load_pretrained(directory, dtype=_DTYPE.value)
  ours = OurPrompts(model, max(lengths))
  rows = []
  for length in lengths:
    ids = _prompt(length)
    sides = {
      "ours": lambda ids=ids: ours.prefill(ids),
      "transformers": lambda ids=ids: theirs.prefill(ids[None])[0][0],
    }
    logits = [run() for run in sides.values()]  # compiles, warms up
    times = in_turn(sides, _REPEATS.value)
    mine, other = (statistics.median(times[name]) for name in sides)
    rows.append(
      {
        "prefill": length,
        "ours_seconds": mine,
        "transformers_seconds": other,
        "times_as_fast": other / mine,
        "max_logit_difference": float(np.abs(logits[0] - logits[1]).max()),
      }
    )
  return rows


def _decode_row(directory: str, theirs: Any, batch: int) -> dict[str, Any]:
  """Both sides answer one prompt `batch` times, in turns of some steps."""
  prompt, rows = _prompt(_CONTEXT.value), max(2, batch)
  model, _ = load_pretrained(directory, decode_rows=rows, dtype=_DTYPE.value)
  sides = {
    "ours": OurAnswers(model, prompt, batch, _STEPS.value),
    "transformers": TheirAnswers(theirs, prompt, batch),
  }
  sides["transformers"].run(2)
  times: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(_BLOCKS):
    for name, side in sides.items():
      times[name] += side.run(_STEPS.value // _BLOCKS)
  # Ours with what makes chunks canonical, which is not in every step.
  mine = statistics.fmean(times["ours"])
  other = statistics.median(times["transformers"])
  return {
    "decode": batch,
    "ours_seconds": mine,
    "ours_median_seconds": statistics.median(times["ours"]),
    "transformers_seconds": other,
    "times_as_fast": other / mine,
    "same_ids_until": same_until(*sides.values()),
  }


def _measure(
  family: str, lengths: list[int], batches: list[int], **changes: Any
) -> list[dict[str, Any]]:
  """Rows of one family's model."""
  from benchmarks import family_models, transformers_model

  with tempfile.TemporaryDirectory() as directory:
    config = family_models.configuration(family, **changes)
    transformers_model.write_checkpoint(directory, config)
    theirs = transformers_model.Transformers(
      directory, os.cpu_count() or 1, _DTYPE.value
    )
    rows = _prefill_rows(directory, theirs, lengths)
    rows += [_decode_row(directory, theirs, batch) for batch in batches]
  return [{"family": family} | changes | row for row in rows]


def _line(row: dict[str, Any]) -> str:
  """One measured row as a person reads it."""
  if "prefill" in row:
    what = f"{row['prefill']:6d} tokens of a prompt"
    agreement = f"logits within {row['max_logit_difference']:.1e}"
  else:
    what = f"{row['decode']:6d} sequences decoded"
    agreement = f"the same ids for {row['same_ids_until']}"
  experts = f" {row['num_experts']:4d} experts" if "num_experts" in row else ""
  return (
    f"{row['family']:16s}{experts}{what}: ours"
    f" {1e3 * row['ours_seconds']:8.1f} ms, transformers"
    f" {1e3 * row['transformers_seconds']:8.1f} ms,"
    f" {row['times_as_fast']:5.2f} times as fast; {agreement}"
  )


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    lengths = command_line.whole_numbers(_LENGTHS, least=128, most=8192)
    batches = command_line.whole_numbers(_BATCHES, most=64)
    experts = (
      command_line.whole_numbers(_EXPERTS, least=4) if _EXPERTS.value else []
    )
    command_line.writable(_OUTPUT)
    command_line.installed("torch", "transformers")
    from benchmarks.family_models import FAMILIES

    command_line.known(_FAMILIES, FAMILIES)
    if experts and _FAMILIES.value:
      raise ValueError(f"--experts is of {_GROWING} alone, without --families")
  models: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name in _FAMILIES.value or FAMILIES
  ]
  if experts:
    models = [(_GROWING, {"num_experts": number}) for number in experts]
  rows = []
  for family, changes in models:
    for row in _measure(family, lengths, batches, **changes):
      rows.append(row)
      print(_line(row), flush=True)
    if _OUTPUT.value:  # After each: minutes of the others are not lost.
      threads, dtype = os.cpu_count() or 1, _DTYPE.value
      result = {"threads": threads, "dtype": dtype, "rows": rows}
      write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
