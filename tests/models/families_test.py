"""Families: logits of transformers, and the same bits by every way."""

import functools
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sparse_prefix_jax import (
  HybridDecoder,
  PrefixCache,
  decode,
  load_pretrained,
  page_bytes,
  prefill,
  preset,
  state_bytes,
)
from sparse_prefix_jax.contract import ColdRuns, Schedule, differing_bits
from sparse_prefix_jax.models.checkpoint import read_config
from sparse_prefix_jax.models.families import FAMILIES
from sparse_prefix_jax.models.published import PUBLISHED
from tests.models_for_tests import LONGEST
from tests.trees import assert_same_bits

PAGE = pathlib.Path(__file__).parents[2] / "docs/how-to/checkpoints.md"
GOLDEN = pathlib.Path(__file__).parent / "golden_families"
CASES = sorted(path.name for path in GOLDEN.iterdir())
CHOICES = {"ladder": (4,), "chunk": 16, "max_length": 256, "head_rows": 64}
CHOICES |= {"dtype": "float32"}
TINY = ("qwen3_5_moe_tiny", "qwen3_next_tiny")
TINY += ("mamba2_tiny", "granite_hybrid_tiny")
SMALL = {"chunk": 16, "ladder": (4, 8), "max_length": 256, "head_rows": 32}


def golden(case):
  stored = np.load(GOLDEN / case / "golden.npz")
  return stored["tokens"], stored["logits"]


def load(directory, **changes):
  model, _ = load_pretrained(directory, **(CHOICES | changes))
  return model


def distance(got, expected):
  """The largest difference, where 1 is as much as is allowed."""
  limit = 2e-4 * max(1.0, np.abs(expected).max() / 10)
  return np.abs(got - expected).max() / limit


def test_every_family_has_three_cases():
  families = {case.rpartition("_")[0] for case in CASES}
  assert families == {name.removesuffix("_tiny") for name in TINY}
  assert len(CASES) == 3 * len(families)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case):
  (tokens, expected), model = golden(case), load(GOLDEN / case)
  assert np.abs(expected).max() > 0.5  # there is something to agree on
  cache, resumed = PrefixCache(model, capacity="4MiB"), []
  for capture in ([48], [128], []):
    out = prefill(model, cache, [tokens], capture=[capture], all_logits=True)
    cache.release(out.sequences)
    resumed.append(out.reports[0].resumed)
    assert distance(out.logits[0], expected[resumed[-1] :]) <= 1
  assert resumed == [0, 48, 128]
  sequences = prefill(model, cache, [tokens[:100]]).sequences
  for position in range(100, 150):
    out = decode(model, cache, sequences, tokens[position : position + 1])
    sequences = out.sequences
    assert distance(out.logits[0], expected[position]) <= 1
  cache.release(sequences)


@functools.cache
def tiny(name, **changes):
  """A small random model of a family, with norms and biases that count."""
  model = HybridDecoder(preset(name, **(SMALL | changes)), rngs=nnx.Rngs(0))
  random = np.random.default_rng(0)
  parameters = nnx.state(model)

  def moved(x):
    if x.ndim > 1:
      return x
    return x + jnp.asarray(0.1 * random.normal(size=x.shape), x.dtype)

  nnx.update(model, jax.tree.map(moved, parameters))
  return model


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_lives_differ_in_no_bit(name, dtype):
  cold, compared = ColdRuns(tiny(name, dtype=dtype), longest=LONGEST), 0
  for seed in range(2):
    schedule = Schedule(cold, seed, longest=LONGEST)
    assert schedule.run() == 0
    compared += schedule.compared
  assert compared > 1e6  # bytes: the schedules did something


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_rung_has_the_same_bits(name, dtype):
  tokens = random_tokens(640)
  first, other = (
    ColdRuns(
      tiny(name, dtype=dtype, ladder=(rung,), chunk=64, max_length=1024),
      longest=640,
    ).prefill(tokens)
    for rung in (1, 4)
  )
  assert differing_bits(first.logits, other.logits) == 0
  assert_same_bits(first.pools, other.pools)
  assert np.abs(first.logits).max() > 1e-2


def copy(tmp_path, case, edit=lambda tensors: tensors, **changes):
  """A directory with other tensors, and keys of its config.json replaced."""
  directory = tmp_path / case
  directory.mkdir()
  for name in ("config.json", "model.safetensors"):
    shutil.copy(GOLDEN / case / name, directory / name)
  config = json.loads((directory / "config.json").read_text()) | changes
  (directory / "config.json").write_text(json.dumps(config))
  path = directory / "model.safetensors"
  save_file(edit(load_file(path)), path)
  return directory


def fused(tensors):
  """The experts of every layer in one tensor, as they are published."""
  kept = {k: v for k, v in tensors.items() if ".mlp.experts." not in k}
  layers = {k.split(".experts.")[0] for k in tensors if ".mlp.experts." in k}
  for layer in layers:
    names = [k for k in tensors if k.startswith(f"{layer}.experts.")]
    each = range(len(names) // 3)

    def part(e, name, layer=layer):
      return tensors[f"{layer}.experts.{e}.{name}.weight"]

    both = ("gate_proj", "up_proj")
    kept[f"{layer}.experts.gate_up_proj"] = np.stack(
      [np.concatenate([part(e, name) for name in both]) for e in each]
    )
    kept[f"{layer}.experts.down_proj"] = np.stack(
      [part(e, "down_proj") for e in each]
    )
  return kept


def test_experts_in_one_tensor_are_the_same_model(tmp_path):
  case = "qwen3_5_moe_1"
  models = load(GOLDEN / case), load(copy(tmp_path, case, fused))
  assert_same_bits(*map(jax.tree.leaves, models))


@pytest.mark.parametrize("flat", [True, False])
def test_wrapper_and_flat_form_are_the_same_model(tmp_path, flat):
  case = "qwen3_5_moe_1"
  directory = copy(tmp_path, case, model_type="qwen3_5_moe")
  path = directory / "config.json"
  text = json.loads((GOLDEN / case / "config.json").read_text())
  if not flat:
    outer = {"model_type": "qwen3_5_moe", "tie_word_embeddings": False}
    path.write_text(json.dumps(outer | {"text_config": text}))
  models = load(GOLDEN / case), load(directory)
  assert_same_bits(*map(jax.tree.leaves, models))


REFUSED = [
  ("qwen3_5_moe_1", {"norm_topk_prob": False}, "norm_topk_prob in .* False;"),
  ("qwen3_5_moe_1", {"decoder_sparse_step": 2}, "decoder_sparse_step in .* 2"),
  ("qwen3_5_moe_1", {"mlp_only_layers": [1]}, "mlp_only_layers in .* known"),
  ("qwen3_5_moe_1", {"num_experts": None}, "num_experts in .* int above 0"),
  ("qwen3_5_moe_1", {"num_experts_per_tok": 9}, "chosen is 9; .* experts = 8"),
  ("qwen3_5_moe_1", {"hidden_act": "gelu"}, "hidden_act in .* only 'silu'"),
  ("qwen3_5_moe_1", {"n_group": 2}, "n_group in .* is 2; this key is not"),
  ("qwen3_next_2", {"mlp_only_layers": [3]}, "mlp_only_layers in .* 3 layers"),
  ("qwen3_next_2", {"mlp_only_layers": "1"}, "mlp_only_layers in .* list"),
  ("qwen3_next_2", {"intermediate_size": None}, "intermediate_size in .* int"),
  ("qwen3_next_1", {"norm_topk_prob": 1}, "norm_topk_prob in .* true or false"),
  ("mamba2_1", {"time_step_limit": [0.0, 0.1]}, "time_step_limit in .* only"),
  ("mamba2_1", {"hidden_act": "gelu"}, "hidden_act in .* only 'silu'"),
  ("mamba2_1", {"expand": 3}, "expand in .* is 3; heads .* 64 channels"),
  ("mamba2_1", {"n_groups": 3}, "heads is 4; .* multiple of groups = 3"),
  ("mamba2_1", {"norm_before_gate": True}, "norm_before_gate in .* not known"),
  ("granite_hybrid_1", {"attention_bias": True}, "attention_bias in .* only"),
  ("granite_hybrid_1", {"layer_types": ["mamba"]}, "names 1 layers; .* = 3"),
  ("granite_hybrid_1", {"layer_types": ["x"] * 3}, "holds 'x'; .* attention"),
  (
    "granite_hybrid_1",
    {"position_embedding_type": "alibi"},
    "position_embedding_type in .* 'alibi'; only 'rope' or 'nope'",
  ),
  ("granite_hybrid_1", {"logits_scaling": 0}, "logits_scaling in .* above 0"),
  (
    "granite_hybrid_1",
    {"layers_block_type": ["mamba"] * 3},
    "layers_block_type says something else",
  ),
  ("qwen3_next_1", {"attention_bias": True}, "attention_bias in .* True; only"),
]


@pytest.mark.parametrize(("case", "changes", "message"), REFUSED)
def test_what_is_not_computed_is_refused(tmp_path, case, changes, message):
  directory = copy(tmp_path, case, **changes)
  with pytest.raises(ValueError, match=message) as refused:
    read_config(directory, **CHOICES)
  assert "\n" not in str(refused.value)


def test_an_expert_of_another_shape_is_refused(tmp_path):
  name = "model.layers.0.mlp.experts.2.up_proj.weight"
  directory = copy(
    tmp_path, "qwen3_5_moe_1", lambda ts: ts | {name: ts[name][:-1].copy()}
  )
  with pytest.raises(ValueError, match=r"experts\.0\.gate_proj.* asks for"):
    load(directory)


@pytest.mark.parametrize("name", ["in_proj_qkvz", "in_proj_ba"])
def test_interleaved_heads_of_another_shape_are_refused(tmp_path, name):
  name = f"model.layers.0.linear_attn.{name}.weight"
  directory = copy(
    tmp_path, "qwen3_next_1", lambda ts: ts | {name: ts[name][:-1].copy()}
  )
  with pytest.raises(
    ValueError, match=r"linear_attn\..* has shape .* asks for"
  ):
    load(directory)


def test_the_page_says_what_a_state_costs():
  """The rows of the page are those that the configurations make."""
  text, known = PAGE.read_text("utf-8"), []
  for name in PUBLISHED:
    if name in TINY:
      continue
    config = preset(name)
    state, page = state_bytes(config), page_bytes(config)
    assert config.numerics.dtype == "bfloat16"
    tokens = "-"
    if page:
      tokens = f"{state / (page / config.numerics.chunk):,.0f}"
    known.append(f"| `{name}` | {state / 2**20:.0f} | {tokens} |")
  rows = [line for line in text.splitlines() if line.startswith("| `")]
  assert [row for row in rows if row.split("`")[1] in PUBLISHED] == known


def test_the_page_lists_every_model_type():
  text = PAGE.read_text("utf-8")
  for name in (name for family in FAMILIES for name in family.model_types):
    assert f"`{name}`" in text


@pytest.mark.parametrize(
  ("name", "parameters"),
  [
    ("qwen3_6_35b_a3b", 35e9),
    ("qwen3_5_397b_a17b", 397e9),
    ("qwen3_next_80b_a3b", 80e9),
    ("mamba2_2_7b", 2.7e9),
    ("granite_4_h_micro", 3.2e9),
    ("granite_4_h_tiny", 6.9e9),
    ("granite_4_h_small", 32.2e9),
  ],
)
def test_published_sizes_have_the_parameters_of_their_names(name, parameters):
  config = preset(name)
  model = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))
  assert abs(found / parameters - 1) < 0.03
