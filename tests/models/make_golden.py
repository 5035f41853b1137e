"""Writes golden checkpoints and logits with transformers; `make parity`.

Each case is a Hugging Face directory that transformers itself wrote
(config.json and model.safetensors, random weights), with the tokens and the
logits of its own forward pass in `golden.npz`. With --check nothing is written:
transformers runs again on the stored weights and must give the stored logits.

Usage: python -m tests.models.make_golden [--check]
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

_DIRECTORY = pathlib.Path(__file__).parent / "golden"
_TOKENS = 300  # not a multiple of 64
_VOCABULARY = 96


def _config(**changes):
  fields = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "tie_word_embeddings": False,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": 1e7,
      "partial_rotary_factor": 0.25,
      "mrope_section": [2, 1, 1],
    },
  }
  return transformers.Qwen3_5TextConfig(**(fields | changes))


def _decays(model, log_rate, bias):
  """Sets every decay: exp(-exp(log_rate) softplus(. + bias))."""
  for layer in model.model.layers:
    if hasattr(layer, "linear_attn"):
      layer.linear_attn.A_log.data.fill_(log_rate)
      layer.linear_attn.dt_bias.data.fill_(bias)


def _cases():
  random = np.random.default_rng(0).integers(0, _VOCABULARY, _TOKENS)
  repeated = np.tile([7, 7, 7, 11], _TOKENS)[:_TOKENS]
  yield "random", random, {}, None
  yield "repeated", repeated, {"tie_word_embeddings": True}, None
  yield "decay_near_0", random, {}, (4.0, 2.0)  # forgets everything
  yield "decay_near_1", repeated, {}, (-9.0, -4.0)  # forgets nothing


def _logits(directory, tokens):
  model = transformers.Qwen3_5ForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  with torch.no_grad():
    return model(torch.tensor(tokens)[None]).logits[0].numpy()


def _write(name, tokens, changes, decays, root):
  torch.manual_seed(sum(map(ord, name)))
  model = transformers.Qwen3_5ForCausalLM(_config(**changes))
  for parameter in model.parameters():
    if parameter.ndim > 1:  # larger than the default, so that errors show
      parameter.data.normal_(0, 0.1)
  if decays:
    _decays(model, *decays)
  directory = root / name
  model.save_pretrained(directory)
  (directory / "generation_config.json").unlink(missing_ok=True)
  np.savez_compressed(
    directory / "golden.npz",
    tokens=tokens.astype(np.int32),
    logits=_logits(directory, tokens),
  )


def _check(directory):
  golden = np.load(directory / "golden.npz")
  again = _logits(directory, golden["tokens"])
  worst = float(np.abs(again - golden["logits"]).max())
  print(f"{directory.name}: transformers again, max difference {worst:.1e}")
  return worst < 1e-5


def main():
  """Writes the golden files, or checks them."""
  if "--check" in sys.argv:
    results = [_check(path) for path in sorted(_DIRECTORY.iterdir())]
    sys.exit(0 if results and all(results) else 1)
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    for case in _cases():
      _write(*case, root)
    for path in sorted(root.iterdir()):
      target = _DIRECTORY / path.name
      target.mkdir(parents=True, exist_ok=True)
      for file in path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
  main()
