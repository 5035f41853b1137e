"""Weights in 8-bit floats against transformers; part of `make parity`.

transformers multiplies them out as it loads (`dequantize=True`); computing with
them as they are, it would round activations too. Blocks divide every shape
here, since it takes no others.

Usage: python -m tests.models.compare_fp8
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from tests.models.loaded_logits import loaded_logits
from tests.models.tiny_checkpoint import (
  quantized_fp8,
  tiny_config,
  tiny_tensors,
  write,
)

_TOKENS = np.random.default_rng(0).integers(0, 32, 50)
_BLOCK = [8, 4]
_KEPT = ["lm_head"] + [
  f"model.layers.0.linear_attn.in_proj_{name}" for name in "ab"
]


def _quantized(directory):
  """Writes a checkpoint whose products are quantised, but for two."""
  scheme = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": _BLOCK,
    "modules_to_not_convert": _KEPT,
  }
  config = tiny_config(quantization_config=scheme)
  tensors = tiny_tensors(config)
  modules = [name.removesuffix(".weight") for name in tensors]
  for module in modules:
    if "_proj" in module and module not in _KEPT:
      name = f"{module}.weight"
      stored, scale = quantized_fp8(tensors[name], _BLOCK)
      tensors |= {name: stored, f"{name}_scale_inv": scale}
  return write(directory, config, tensors)


def _theirs(directory):
  """Logits of transformers with the weights multiplied out in float32."""
  model = transformers.Qwen3_5ForCausalLM.from_pretrained(
    directory,
    dtype=torch.float32,
    attn_implementation="eager",
    quantization_config=transformers.FineGrainedFP8Config(
      weight_block_size=_BLOCK,
      modules_to_not_convert=_KEPT,
      dequantize=True,
    ),
  ).eval()
  with torch.no_grad():
    return model(torch.tensor(_TOKENS)[None]).logits[0].numpy()


def main():
  """Compares, and fails if they differ."""
  with tempfile.TemporaryDirectory() as scratch:
    directory = _quantized(pathlib.Path(scratch))
    theirs = _theirs(directory)
    worst = float(np.abs(loaded_logits(directory, _TOKENS) - theirs).max())
  largest = float(np.abs(theirs).max())
  print(f"fp8: max difference {worst:.1e}, of logits up to {largest:.1f}")
  sys.exit(0 if worst < 1e-4 < 1 < largest else 1)


if __name__ == "__main__":
  main()
