"""Hugging Face directories: logits of transformers, refusals."""

import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_prefix_jax import PrefixCache, load_pretrained, prefill
from sparse_prefix_jax.layers import Numerics
from sparse_prefix_jax.models import hybrid
from sparse_prefix_jax.models.checkpoint import read_config
from tests.models import float64_model
from tests.trees import assert_same_bits

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())
# Widths that are no multiples of 64 take a single rung.
CHOICES = {"ladder": (4,), "max_length": 512, "head_rows": 64}
LAYER = "model.layers.0."


def load(directory, **changes):
  model, _ = load_pretrained(directory, **(CHOICES | changes))
  return model


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_transformers_cold_and_resumed(case):
  golden = np.load(GOLDEN / case / "golden.npz")
  tokens, expected = golden["tokens"], golden["logits"]
  assert tokens.size == 300
  model, resumed = load(GOLDEN / case), []
  cache = PrefixCache(model, capacity=4 << 20)
  # Each run leaves the state that the next one resumes from.
  for capture in ([64], [128], [256], []):
    out = prefill(model, cache, [tokens], capture=[capture], all_logits=True)
    cache.release(out.sequences)
    resumed.append(out.reports[0].resumed)
    difference = np.abs(out.logits[0] - expected[resumed[-1] :]).max()
    assert difference <= 2e-4
  assert resumed == [0, 64, 128, 256]
  assert np.abs(expected).max() > 1  # there is something to agree on


@pytest.mark.parametrize(
  "scaling",
  [
    {"rope_type": "linear", "factor": 2.0},
    {
      "rope_type": "yarn",
      "factor": 4.0,
      "original_max_position_embeddings": 64,
    },
  ],
)
def test_scaled_angles_have_the_same_bits_resumed(tmp_path, scaling):
  rope = {"rope_theta": 1e4, "partial_rotary_factor": 0.5} | scaling
  directory = copy(tmp_path, rope_parameters=rope)
  tokens = np.load(GOLDEN / "random" / "golden.npz")["tokens"][:200]
  model, rows = load(directory), []
  cache = PrefixCache(model, capacity=4 << 20)
  for resumed in (0, 128):
    out = prefill(model, cache, [tokens], capture=[[128]])
    cache.release(out.sequences)
    assert out.reports[0].resumed == resumed
    rows.append(out.logits[0])
  assert rows[0].tobytes() == rows[1].tobytes()
  expected = float64_model.logits(directory, tokens)[-1]
  np.testing.assert_allclose(rows[0], expected, atol=2e-4)
  plain = float64_model.logits(GOLDEN / "random", tokens)[-1]
  assert np.abs(plain - expected).max() > 1e-3


def test_all_cases_are_there():
  assert CASES == ["decay_near_0", "decay_near_1", "random", "repeated"]
  tied = {case: load(GOLDEN / case).config.tie_embeddings for case in CASES}
  assert tied == {case: case == "repeated" for case in CASES}


def copy(tmp_path, case="random", **changes):
  """A directory to be changed; `changes` go into its config.json."""
  directory = tmp_path / "checkpoint"
  directory.mkdir()
  for name in ("config.json", "model.safetensors"):
    shutil.copy(GOLDEN / case / name, directory / name)
  config = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps(config | changes))
  return directory


def edit_config(directory, edit):
  path = directory / "config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps(edit(config)))


def drop_key(directory, key):
  edit_config(directory, lambda c: {k: v for k, v in c.items() if k != key})


def edit_tensors(directory, edit):
  path = directory / "model.safetensors"
  save_file(edit(load_file(path)), path)


def assert_same_weights(directory):
  models = load(directory), load(GOLDEN / "random")
  assert_same_bits(*map(jax.tree.leaves, models))


def test_sharded_files_are_read(tmp_path):
  directory = copy(tmp_path)
  path = directory / "model.safetensors"
  tensors = load_file(path)
  names = sorted(tensors)
  for i in range(3):
    part = {name: tensors[name] for name in names[i::3]}
    save_file(part, directory / f"model-0000{i + 1}-of-00003.safetensors")
  path.unlink()
  assert_same_weights(directory)


def test_conditional_models_nest_names_and_configuration(tmp_path):
  directory = copy(tmp_path)

  def nested(tensors):
    moved = {
      name.replace("model.", "model.language_model.", 1): value
      for name, value in tensors.items()
    }
    return moved | {"model.visual.patch.weight": np.zeros((2, 2), np.float32)}

  edit_tensors(directory, nested)
  edit_config(
    directory, lambda text: {"model_type": "qwen3_5", "text_config": text}
  )
  assert_same_weights(directory)


def test_bfloat16_tensors_and_weights(tmp_path):
  directory = copy(tmp_path)
  edit_tensors(
    directory,
    lambda tensors: {
      name: np.asarray(jnp.asarray(value, jnp.bfloat16))
      for name, value in tensors.items()
    },
  )
  rounded, original = load(directory), load(GOLDEN / "random")
  model = load(directory, dtype="bfloat16")
  assert model.embedding[...].dtype == jnp.bfloat16
  expected = original.embedding[...].astype(jnp.bfloat16)
  np.testing.assert_array_equal(model.embedding[...], expected)
  np.testing.assert_array_equal(
    rounded.embedding[...], expected.astype(jnp.float32)
  )
  # Gates stay float32.
  assert model.branches[0].sub.log_rate[...].dtype == jnp.float32


def test_the_configuration_is_that_of_the_file():
  config = read_config(GOLDEN / "random", **CHOICES)
  assert config == hybrid(
    vocab_size=96,
    width=64,
    hidden=96,
    layer_types=("gated_delta_net", "gated_delta_net", "attention"),
    key_heads=2,
    value_heads=4,
    key_width=16,
    value_width=24,
    heads=4,
    kv_heads=2,
    head_width=32,
    rotary_width=8,
    tie_embeddings=False,
    numerics=Numerics(**CHOICES),
  )


def kinds_of(directory):
  """The mixers that a directory asks for, layer by layer."""
  branches = read_config(directory, **CHOICES).branches
  return tuple(branch.sub.kind for branch in branches[::2])


def test_layer_types_may_be_an_interval(tmp_path):
  directory = copy(tmp_path, num_hidden_layers=6, full_attention_interval=3)
  edit_config(directory, lambda c: c | {"layer_types": None})
  kinds = kinds_of(directory)
  assert kinds == (("gated_delta_net",) * 2 + ("attention",)) * 2
  drop_key(directory, "layer_types")
  assert kinds_of(directory) == kinds


ROPE = {"rope_type": "default", "rope_theta": 1e7}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "llama"}, "model_type in .* is 'llama'; .*qwen3_5_text"),
    ({"attention_bias": True}, "attention_bias in .* is True; only False"),
    ({"hidden_act": "gelu"}, "hidden_act in .* is 'gelu'; only 'silu'"),
    (
      {"rope_parameters": ROPE | {"rope_type": "longrope"}},
      "rope_type in .* is 'longrope'; .* total length",
    ),
    (
      {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}},
      "type in .* is 'dynamic'; .* total length",
    ),
    (
      {"rope_parameters": ROPE, "rope_scaling": {"rope_type": "dynamic"}},
      "rope_type in rope_scaling .* is 'dynamic'; .* total length",
    ),
    (
      {"rope_parameters": ROPE | {"type": "linear"}},
      "rope_type in rope_parameters .* is 'default'; type is 'linear'",
    ),
    ({"rope_parameters": [1]}, r"rope_parameters in .* is \[1\]; .* object"),
    ({"rope_scaling": "yarn"}, "rope_scaling in .* is 'yarn'; .* object"),
    ({"rope_scaling": []}, r"rope_scaling in .* is \[\]; .* object"),
    ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta in .* is 'x'; .*"),
    (
      {"rope_parameters": {"partial_rotary_factor": -1}},
      "partial_rotary_factor in .* is -1; .* number above 0",
    ),
    (
      {"rope_parameters": {"partial_rotary_factor": 1e308}},
      "partial_rotary_factor in .* is 1e.308; .* at most 1",
    ),
    ({"attn_output_gate": False}, "attn_output_gate in .* is False; only True"),
    (
      {"num_experts": 8},
      "num_experts in .* is 8; a dense model has no experts",
    ),
    ({"num_local_experts": 8}, "num_local_experts in .* is 8; a dense model"),
    (
      {"moe_intermediate_size": 64},
      "moe_intermediate_size in .* is 64; a dense",
    ),
    ({"hidden_size": "64"}, r"hidden_size in .*config\.json is '64'; .* int"),
    ({"hidden_size": 64.0}, r"hidden_size in .*config\.json is 64\.0; .* int"),
    ({"hidden_size": None}, r"hidden_size in .*config\.json is None; .* int"),
    ({"head_dim": 0}, r"head_dim in .*config\.json is 0; .* int above 0"),
    ({"rms_norm_eps": -1}, "rms_norm_eps in .* is -1; .* number above 0"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps in .* is nan; .* finite"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings in .* is 'no'; .*"),
    ({"full_attention_interval": 0}, "full_attention_interval in .* is 0; .*"),
    (
      {"layer_types": None, "full_attention_interval": 0},
      r"full_attention_interval in .*config\.json is 0; .* int above 0",
    ),
    ({"layer_types": "linear"}, "layer_types in .* is 'linear'; .* a list"),
    ({"layer_types": []}, r"layer_types in .* is \[\]; .* a list"),
    (
      {"layer_types": ["full_attention"] * 2},
      "layer_types in .* names 2 layers; .* num_hidden_layers = 3",
    ),
    (
      {"layer_types": ["full_attention"] * 4},
      "layer_types in .* names 4 layers; .* num_hidden_layers = 3",
    ),
    (
      {"layer_types": None, "num_hidden_layers": "3"},
      "num_hidden_layers in .* is '3'; .* int above 0",
    ),
    ({"layer_types": [["x"]]}, "layer_types in .* holds .* full_attention"),
    ({"layer_types": ["sliding_attention"]}, "holds 'sliding_attention'"),
    ({"linear_num_value_heads": 3}, "value_heads is 3; .* multiple"),
  ],
)
def test_another_architecture_is_refused(tmp_path, changes, message):
  directory = copy(tmp_path, **changes)
  with pytest.raises(ValueError, match=message) as refused:
    load(directory)
  assert "\n" not in str(refused.value)


def test_a_field_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match=r"^foo is 1, but no such field"):
    load(GOLDEN / "random", foo=1)


def test_what_says_nothing_about_a_variant_is_taken(tmp_path):
  directory = copy(
    tmp_path,
    rope_scaling=ROPE | {"type": "default"},
    attn_output_gate=True,
    num_experts=0,
    full_attention_interval=None,
  )
  assert read_config(directory, **CHOICES) == read_config(
    GOLDEN / "random", **CHOICES
  )


def test_a_missing_configuration_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
    load(tmp_path / "nowhere")
  directory = copy(tmp_path)
  drop_key(directory, "vocab_size")
  with pytest.raises(ValueError, match=r"config\.json lacks vocab_size"):
    load(directory)
  edit_config(directory, lambda c: c | {"vocab_size": 96})
  drop_key(directory, "layer_types")
  drop_key(directory, "num_hidden_layers")
  with pytest.raises(ValueError, match="lacks num_hidden_layers"):
    load(directory)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", r"config\.json is not JSON"),
    ("[]", r"config\.json holds no JSON object"),
    ('{"text_config": 3}', r"text_config in .* is 3; .* object or null"),
  ],
)
def test_a_broken_configuration_is_refused(tmp_path, text, message):
  directory = copy(tmp_path)
  (directory / "config.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    load(directory)


def test_no_weights_are_refused(tmp_path):
  directory = copy(tmp_path)
  (directory / "model.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file"):
    load(directory)


@pytest.mark.parametrize(
  "name",
  ["model.embed_tokens.weight", "lm_head.weight", LAYER + "linear_attn.A_log"],
)
def test_a_missing_tensor_is_refused(tmp_path, name):
  directory = copy(tmp_path)
  edit_tensors(directory, lambda ts: {k: v for k, v in ts.items() if k != name})
  short = name.removeprefix("model.")
  with pytest.raises(ValueError, match=f"has no tensor {short}"):
    load(directory)


@pytest.mark.parametrize(
  ("name", "kept"),
  [
    ("model.norm.weight", "norm.weight"),
    (LAYER + "mlp.up_proj.weight", "mlp.up_proj.weight"),
    (
      LAYER + "linear_attn.in_proj_a.weight",
      "in_proj_a.weight and .*in_proj_b",
    ),
    (LAYER + "linear_attn.conv1d.weight", "conv1d.weight"),
  ],
)
def test_a_tensor_of_another_shape_is_refused(tmp_path, name, kept):
  directory = copy(tmp_path)
  edit_tensors(directory, lambda ts: ts | {name: ts[name][:-1].copy()})
  message = f"{kept}.* has shape .* asks for"
  with pytest.raises(ValueError, match=message) as refused:
    load(directory)
  assert "\n" not in str(refused.value)


def test_a_damaged_file_is_refused(tmp_path):
  directory = copy(tmp_path)
  path = directory / "model.safetensors"
  content = path.read_bytes()
  for kept in (0, 1000, len(content) - 1):
    path.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
      load(directory)
