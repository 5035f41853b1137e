"""Logits of the presets, stored once: a move of code changes no bit of them.

    python -m tests.models.preset_logits      writes them again

Weights come from a seed. Bits depend on the numerics (version of JAX, kind of
processor, number of threads), so the file says under which it was made: where
they are the same, bits are compared; elsewhere the values, as closely as
another order of summation allows.
"""

import hashlib
import os
import pathlib
import platform

import jax
import jaxlib
import numpy as np
from flax import nnx

from sparse_prefix_jax import (
  HybridDecoder,
  PrefixCache,
  decode,
  prefill,
  preset,
)

PATH = pathlib.Path(__file__).parent / "golden_presets" / "logits.npz"
PRESETS = {
  "tiny": {},
  "tiny_bfloat16": {"dtype": "bfloat16"},
  "demo": {},
  "qwen3_5_0_8b_group": {},
}
"""Names, and what is changed of the preset that a name begins with."""

_LENGTHS = (1, 63, 64, 200)
_DECODED = 3


def numerics() -> str:
  """What bits depend on, as far as a test can see it."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
  kind = sorted({l for l in lines if l.startswith(("flags", "model name"))})
  parts = (jax.__version__, jaxlib.__version__, platform.machine(), *kind)
  digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
  return f"{digest}-{os.cpu_count()}"


def logits(name: str) -> np.ndarray:
  """Prompts of several lengths, cold and resumed, and some decoded tokens.

  Args:
    name: A key of PRESETS.

  Returns:
    Float32. [rows vocab]
  """
  config = preset(name.removesuffix("_bfloat16"), **PRESETS[name])
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  cache = PrefixCache(model, capacity=160 << 20)
  ids = np.random.default_rng(0).integers(0, config.vocab_size, _LENGTHS[-1])
  rows = []
  for length in _LENGTHS:
    out = prefill(model, cache, [ids[:length]])
    rows.append(out.logits[0])
    sequences = out.sequences
    for token in range(_DECODED):
      step = decode(model, cache, sequences, [token])
      sequences = step.sequences
      rows.append(step.logits[0])
    cache.release(sequences)
  return np.stack(rows)


def main() -> None:
  """Computes and writes them all."""
  arrays = {name: logits(name) for name in PRESETS}
  np.savez_compressed(PATH, numerics=numerics(), **arrays)


if __name__ == "__main__":
  main()
