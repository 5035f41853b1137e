"""Writes golden checkpoints and logits with transformers; `make parity`.

Each case is a Hugging Face directory that transformers itself wrote
(config.json and model.safetensors, random weights), with the tokens and the
logits of its own forward pass in `golden.npz`. With --check nothing is written:
transformers runs again on the stored weights and must give the stored logits.

Those of `family_cases.py` go to `golden_families`, with weights in bfloat16 and
the smallest gap between an expert that was chosen and one that was not.

Usage: python -m tests.models.make_golden [--check] [families | FAMILY...]
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from tests.models import family_cases

_DIRECTORY = pathlib.Path(__file__).parent / "golden"
_FAMILIES = _DIRECTORY.with_name("golden_families")
_FAMILY_TOKENS = 150
_LEAST_GAP = 1e-5
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
  """Logits of one whole forward without a cache, and the smallest gap."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  gaps = [np.inf]
  for module in model.modules():
    if type(module).__name__.lower().endswith("topkrouter"):
      module.register_forward_hook(
        lambda router, _, out: gaps.extend(_gaps(router, out[0]))
      )
  with torch.no_grad():
    logits = model(torch.tensor(tokens)[None], use_cache=False).logits
  return logits[0].numpy(), min(gaps)


def _gaps(router, scores):
  """The gaps of what a router chooses: experts, and groups of them."""
  if not hasattr(router, "e_score_correction_bias"):
    return [_gap(scores, router.top_k)]
  ranked = scores.sigmoid() + router.e_score_correction_bias
  parts = ranked.unflatten(-1, (router.num_group, -1))
  groups = parts.topk(2, dim=-1)[0].sum(-1)
  best = groups.topk(router.topk_group, dim=-1)[1]
  mask = torch.zeros_like(groups).scatter_(-1, best, 1).bool()
  ranked = parts.masked_fill(~mask[..., None], -1e9).flatten(-2)
  return [_gap(groups, router.topk_group), _gap(ranked, router.top_k)]


def _gap(scores, chosen):
  """How far the worst chosen expert is above the best of the others."""
  if scores.shape[-1] <= chosen:
    return np.inf
  best = scores.sort(-1, descending=True).values
  return float((best[..., chosen - 1] - best[..., chosen]).min())


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
    logits=_logits(directory, tokens)[0],
  )


def _write_family(name, config, root):
  torch.manual_seed(sum(map(ord, name)))
  model = transformers.AutoModelForCausalLM.from_config(config)
  for parameter in model.parameters():
    if parameter.ndim > 1:
      parameter.data.normal_(0, 0.15)
    else:  # norms, biases, decays: around what they are at first
      parameter.data.add_(0.2 * torch.randn_like(parameter))
  for path, buffer in model.named_buffers():
    if path.endswith("e_score_correction_bias"):
      buffer.data.normal_(0, 0.2)
  directory = root / name
  for parameter in model.parameters():
    parameter.data = parameter.data.to(torch.bfloat16)  # and no buffers
  model.config.dtype = torch.bfloat16
  model.save_pretrained(directory)
  (directory / "generation_config.json").unlink(missing_ok=True)
  random = np.random.default_rng(len(name))
  tokens = random.integers(0, family_cases.VOCABULARY, _FAMILY_TOKENS)
  logits, gap = _logits(directory, tokens)
  print(f"{name}: smallest gap at a router {gap:.1e}")
  assert gap >= _LEAST_GAP, "an expert hangs by rounding; take another seed"
  np.savez_compressed(
    directory / "golden.npz",
    tokens=tokens.astype(np.int32),
    logits=logits,
    gap=gap,
  )


def _check(directory):
  golden = np.load(directory / "golden.npz")
  again, _ = _logits(directory, golden["tokens"])
  worst = float(np.abs(again - golden["logits"]).max())
  # Both are float32, each as far from the truth as what is compared with them
  # may be: where PyTorch adds in another order (an Intel with AVX-512 beside an
  # AMD), Qwen3-Next's chunks of decays come to 2.3e-4.
  limit = 2 * 2e-4 * max(1.0, float(np.abs(golden["logits"]).max()) / 10)
  print(
    f"{directory.name}: transformers again, max difference {worst:.1e},"
    f" at most {limit:.1e}"
  )
  return worst < limit


def _copy(root, target):
  """Puts what was written where the tests look for it."""
  for path in sorted(root.iterdir()):
    (target / path.name).mkdir(parents=True, exist_ok=True)
    for file in path.iterdir():
      (target / path.name / file.name).write_bytes(file.read_bytes())


def main():
  """Writes the golden files, or checks them."""
  names = [name for name in sys.argv[1:] if not name.startswith("--")]
  targets = [_FAMILIES] if names else [_DIRECTORY, _FAMILIES]
  wanted = tuple(f"{name}_" for name in names if name != "families") or ("",)
  if "--check" in sys.argv:
    paths = [path for target in targets for path in sorted(target.iterdir())]
    paths = [path for path in paths if path.name.startswith(wanted)]
    results = [_check(path) for path in paths]
    sys.exit(0 if results and all(results) else 1)
  with tempfile.TemporaryDirectory() as scratch:
    roots = [pathlib.Path(scratch) / target.name for target in targets]
    for root, target in zip(roots, targets, strict=True):
      root.mkdir()
      if target == _DIRECTORY:
        for case in _cases():
          _write(*case, root)
      else:
        for name, config in family_cases.cases():
          if name.startswith(wanted):
            _write_family(name, config, root)
      _copy(root, target)


if __name__ == "__main__":
  main()
