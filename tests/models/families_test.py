"""Families: what is read of a checkpoint."""

import json

import jax
import numpy as np
import pytest

from sparse_prefix_jax.layers import AttentionConfig
from sparse_prefix_jax.models.checkpoint import read_config
from tests.models.golden_cases import CHOICES, GOLDEN, copy, load
from tests.trees import assert_same_bits


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


# Published files say some things twice, and others that compute nothing.
PUBLISHED_KEYS = [
  ("bamba_1", {"attn_rotary_emb": "half", "use_mamba_kernels": True}),
  ("nemotron_h_1", {"attention_head_dim": "head_dim"}),
  ("nemotron_h_1", {"num_query_groups": "num_key_value_heads"}),
  ("nemotron_h_1", {"rms_norm_eps": "layer_norm_epsilon"}),
  ("falcon_h1_1", {"mlp_expansion_factor": 8}),
]


@pytest.mark.parametrize(("case", "keys"), PUBLISHED_KEYS)
def test_what_published_files_say_twice_is_no_fault(tmp_path, case, keys):
  stated = json.loads((GOLDEN / case / "config.json").read_text())
  width = stated.get("head_dim") or (
    stated["hidden_size"] // stated["num_attention_heads"]
  )
  stated["half"] = width // 2
  changes = {key: stated.get(value, value) for key, value in keys.items()}
  models = load(GOLDEN / case), load(copy(tmp_path, case, **changes))
  assert_same_bits(*map(jax.tree.leaves, models))


# Codestral Mamba's file says all of these.
CODESTRAL = {"norm_before_gate": True, "rms_norm": True}
CODESTRAL |= {"intermediate_size": 64, "time_step_scale": 1.0}
CODESTRAL |= {"time_step_init_scheme": "random", "tf_legacy_loss": False}
STEPS = {"time_step_max": 0.1, "time_step_min": 0.001}


@pytest.mark.parametrize(
  ("case", "keys"),
  [
    ("bamba_1", STEPS),
    ("falcon_h1_1", STEPS),
    # Granite-4 without experts says so twice.
    ("granite_hybrid_1", STEPS | {"init_method": "mup"}),
    ("granite_hybrid_1", {"num_experts_per_tok": 0, "intermediate_size": 0}),
    ("jamba_1", {"n_ctx": 262144}),
    ("mamba2_1", CODESTRAL),
    ("olmo_hybrid_1", {"linear_use_gate": True}),
    ("qwen3_next_1", {"use_sliding_window": False}),
  ],
)
def test_what_published_files_say_besides_is_no_fault(tmp_path, case, keys):
  config = read_config(copy(tmp_path, case, **keys), **CHOICES)
  assert config == read_config(GOLDEN / case, **CHOICES)


@pytest.mark.parametrize(
  "keys", [{"num_experts": 0}, {"mlp_only_layers": [0, 1, 2]}]
)
def test_a_file_that_may_have_experts_may_have_none(tmp_path, keys):
  """Every layer is then the dense one that there is."""
  config = read_config(copy(tmp_path, "qwen3_next_2", **keys), **CHOICES)
  mixed = read_config(GOLDEN / "qwen3_next_2", **CHOICES)
  (dense,) = set(config.branches[1::2])
  assert dense == mixed.branches[3] != mixed.branches[1]


def test_experts_that_the_file_does_not_count_are_two(tmp_path):
  """What transformers takes where Granite-4's file does not say."""
  config = read_config(
    copy(tmp_path, "granite_hybrid_3", num_experts_per_tok=None), **CHOICES
  )
  assert config == read_config(GOLDEN / "granite_hybrid_3", **CHOICES)


def test_weights_of_experts_are_not_normed_where_that_is_null(tmp_path):
  """As transformers takes null, under the name that it writes."""
  case, key = "kimi_linear_1", "moe_renormalize"
  configs = []
  for value in (None, False, True):
    (tmp_path / str(value)).mkdir()
    directory = copy(tmp_path / str(value), case, **{key: value})
    configs.append(read_config(directory, **CHOICES))
  assert configs[0] == configs[1] != configs[2]


def test_a_pattern_of_letters_is_the_same_model(tmp_path):
  changes = {"layers_block_type": None, "hybrid_override_pattern": "M-*"}
  changes |= {"num_hidden_layers": 3}
  config = read_config(copy(tmp_path, "nemotron_h_1", **changes), **CHOICES)
  assert config == read_config(GOLDEN / "nemotron_h_1", **CHOICES)


def test_kimi_linear_as_it_was_published_is_the_same_model(tmp_path):
  """Layers counted from 1 in an object of their own, dense ones named so."""
  inside = {"kda_layers": [1, 2], "full_attn_layers": [3], "head_dim": 16}
  inside |= {"num_heads": 3, "short_conv_kernel_size": 4}
  changes = {"linear_attn_config": inside, "first_k_dense_replace": 1}
  changes |= {"moe_router_activation_func": "sigmoid", "moe_layer_freq": 1}
  changes |= {"topk_method": "noaux_tc", "use_grouped_topk": True}
  changes |= {"mla_use_nope": True, "rope_theta": 1e4, "head_dim": 72}
  for key in ("layer_types", "mlp_layer_types", "linear_num_heads"):
    changes[key] = None
  dense = "model.layers.0.block_sparse_moe."

  def published(tensors):
    return {
      k.replace(dense, "model.layers.0.mlp."): x for k, x in tensors.items()
    }

  other = load(copy(tmp_path, "kimi_linear_1", published, **changes))
  expected = load(GOLDEN / "kimi_linear_1")
  assert other.config == expected.config
  assert_same_bits(*map(jax.tree.leaves, (other, expected)))


def test_squared_experts_in_one_tensor_are_the_same_model(tmp_path):
  def one_tensor(tensors):
    kept = {k: x for k, x in tensors.items() if ".experts." not in k}
    for part in ("up_proj", "down_proj"):
      parts = [k for k in tensors if k.endswith(f"{part}.weight")]
      parts = [k for k in parts if ".experts." in k]
      parts.sort(key=lambda k: int(k.split(".experts.")[1].split(".")[0]))
      layer = parts[0].partition(".experts.")[0]
      kept[f"{layer}.experts.{part}"] = np.stack([tensors[k] for k in parts])
    return kept

  case = "nemotron_h_2"
  models = load(GOLDEN / case), load(copy(tmp_path, case, one_tensor))
  assert_same_bits(*map(jax.tree.leaves, models))


@pytest.mark.parametrize("case", ["lfm2_1", "mamba_1", "recurrent_gemma_1"])
def test_some_families_are_tied_where_the_file_does_not_say(tmp_path, case):
  path = copy(tmp_path, case) / "config.json"
  fields = json.loads(path.read_text())
  assert fields.pop("tie_word_embeddings")
  path.write_text(json.dumps(fields))
  assert read_config(path.parent, **CHOICES).tie_embeddings


def test_numbers_of_layers_that_attend_are_the_same_model(tmp_path):
  changes = {"layer_types": None, "full_attn_idxs": [1]}
  config = read_config(copy(tmp_path, "lfm2_1", **changes), **CHOICES)
  assert config == read_config(GOLDEN / "lfm2_1", **CHOICES)


def test_lfm2_takes_its_first_name_of_the_base(tmp_path):
  directory = copy(tmp_path, "lfm2_1", rope_parameters=None, theta=5e4)
  subs = [branch.sub for branch in read_config(directory, **CHOICES).branches]
  bases = {sub.rope_theta for sub in subs if isinstance(sub, AttentionConfig)}
  assert bases == {5e4}
