"""Mutated checkpoints against transformers; part of `make parity`.

What is loaded here of the mutations in `mutations.py` is loaded by transformers
too, in float32, and the logits of 50 tokens are compared, until 200 have been.
A directory that transformers does not load, or of which it makes up tensors
that it misses, is counted and left to the independent reader of the tests.

Usage: python -m tests.models.compare_mutations [how many]
"""

import collections
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from sparse_prefix_jax import load_pretrained
from tests.models.loaded_logits import CHOICES, model_logits
from tests.models.mutations import mutate

_TOKENS = np.random.default_rng(0).integers(0, 32, 50)
_PLAIN_BASES = 3  # those after them are quantised
_BASES = 5


def _theirs(directory):
  """Logits of transformers, or None where it cannot or makes tensors up."""
  try:
    config = transformers.AutoConfig.from_pretrained(directory)
    config = config.get_text_config()
    model, info = transformers.Qwen3_5ForCausalLM.from_pretrained(
      directory,
      config=config,
      dtype=torch.float32,
      attn_implementation="eager",
      output_loading_info=True,
    )
    with torch.no_grad():
      logits = model.eval()(torch.tensor(_TOKENS)[None]).logits[0].numpy()
  except Exception as error:
    print(f"  transformers: {type(error).__name__}: {str(error)[:90]!r}")
    return None
  if info["missing_keys"]:
    print(f"  transformers makes up {sorted(info['missing_keys'])[:2]}")
    return None
  return logits


def _compare(directory, what, counts):
  """Loads one directory on both sides.

  Returns:
    The difference of logits, relative to the largest; 0 where there is none.
  """
  try:
    model, _ = load_pretrained(directory, **CHOICES)
  except (ValueError, FileNotFoundError):
    counts["refused"] += 1
    return 0.0
  print(what)
  theirs = _theirs(directory)
  if theirs is None:
    counts["not loaded by transformers"] += 1
    return 0.0
  counts["compared"] += 1
  difference = np.abs(model_logits(model, _TOKENS) - theirs).max()
  return float(difference / max(1, np.abs(theirs).max()))


def main():
  """Compares as many as are asked for, and fails if one differs."""
  wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
  counts, differing, worst, seed = collections.Counter(), [], 0.0, -1
  transformers.logging.set_verbosity_error()
  with tempfile.TemporaryDirectory() as scratch:
    while counts["compared"] < wanted:
      seed += 1
      if seed % _BASES >= _PLAIN_BASES:
        continue
      directory = pathlib.Path(scratch) / str(seed)
      what = f"{seed}: {mutate(directory, seed)}"
      difference = _compare(directory, what, counts)
      if not difference < 2e-4:
        differing.append(f"{what}: {difference:.1e}")
      else:
        worst = max(worst, difference)
  print(f"{dict(counts)}; worst {worst:.1e} of the others")
  for line in differing:
    print(f"differs: {line}")
  sys.exit(1 if differing else 0)


if __name__ == "__main__":
  main()
