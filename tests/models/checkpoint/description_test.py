"""config.json: defaults from the file, keys that nobody reads, damage."""

import json
import warnings

import ml_dtypes
import numpy as np
import pytest

from sparse_prefix_jax.models.checkpoint import load_pretrained, read_config
from tests.models.tiny_checkpoint import (
  tiny,
  tiny_config,
  tiny_tensors,
  write,
)

LADDER = {"ladder": (4,)}


def config_of(tmp_path, changes=None, **choices):
  return read_config(tiny(tmp_path, changes), **(LADDER | choices))


def without(*keys):
  return {k: v for k, v in tiny_config().items() if k not in keys}


def of_text(tmp_path, config, **choices):
  (tmp_path / "config.json").write_text(json.dumps(config))
  return read_config(tmp_path, **(LADDER | choices))


@pytest.mark.parametrize(
  ("stated", "held"),
  [
    ("bfloat16", "bfloat16"),
    ("float32", "float32"),
    ("float16", "float32"),  # which holds every value of it
    ("torch.bfloat16", "bfloat16"),
  ],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_is_that_of_the_file(tmp_path, key, stated, held):
  config = without("dtype") | {key: stated}
  assert of_text(tmp_path, config).numerics.dtype == held
  assert of_text(tmp_path, config, dtype="auto").numerics.dtype == held
  assert (
    of_text(tmp_path, config, dtype="bfloat16").numerics.dtype == "bfloat16"
  )


def test_a_dtype_that_is_not_computed_in_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"dtype in .* is 'float64'; .* float16"):
    config_of(tmp_path, {"dtype": "float64"})
  with pytest.raises(ValueError, match=r"dtype in .* is 3; it must be one of"):
    config_of(tmp_path, {"dtype": 3})
  changed = config_of(tmp_path, {"dtype": "float64"}, dtype="float32")
  assert changed.numerics.dtype == "float32"


def test_the_weights_decide_the_dtype_where_the_file_does_not(tmp_path):
  config, tensors = without("dtype"), tiny_tensors(tiny_config())
  assert of_text(tmp_path, config).numerics.dtype == "float32"  # no weights
  for dtype, held in (
    (ml_dtypes.bfloat16, "bfloat16"),
    (np.float16, "float32"),
    (np.float32, "float32"),
  ):
    cast = {name: value.astype(dtype) for name, value in tensors.items()}
    directory = write(tmp_path, config, cast)
    model, loaded = load_pretrained(directory, **LADDER)
    assert loaded == read_config(directory, **LADDER)
    assert loaded.numerics.dtype == model.embedding[...].dtype == held


def test_the_longest_sequence_is_the_context(tmp_path):
  assert config_of(tmp_path).numerics.max_length == 512
  assert config_of(tmp_path, max_length=64).numerics.max_length == 64
  config = without("max_position_embeddings")
  assert of_text(tmp_path, config).numerics.max_length == 32768


@pytest.mark.parametrize(
  ("text", "generation", "ids"),
  [
    (3, None, (3,)),
    ([5, 3, 5], None, (5, 3)),
    (None, None, ()),
    (3, {"eos_token_id": [7, 3]}, (7, 3)),
    (3, {"temperature": 0.6}, (3,)),
  ],
)
def test_the_ids_that_end_a_text_are_kept(tmp_path, text, generation, ids):
  directory = tiny(tmp_path, {"eos_token_id": text})
  if generation is not None:
    path = directory / "generation_config.json"
    path.write_text(json.dumps(generation))
  assert read_config(directory, **LADDER).end_ids == ids
  assert load_pretrained(directory, **LADDER)[1].end_ids == ids


def test_ids_that_end_a_text_and_are_no_tokens_are_left_out(tmp_path):
  """As of a checkpoint that was cut to a small vocabulary."""
  directory = tiny(tmp_path, {"eos_token_id": [151645, 3]})
  size = read_config(directory, **LADDER, end_ids=()).vocab_size
  with pytest.warns(UserWarning, match="end_ids") as told:
    config = read_config(directory, **LADDER)
  assert config.end_ids == (3,)
  (warning,) = told
  assert "151645" in str(warning.message)
  assert f"vocab_size = {size}" in str(warning.message)
  with pytest.raises(ValueError, match="end_ids is"):
    read_config(directory, **LADDER, end_ids=(151645,))


def test_a_damaged_generation_config_is_refused(tmp_path):
  directory = tiny(tmp_path)
  for content, message in (
    ("{", "generation_config.json is not JSON"),
    ('{"eos_token_id": -1}', "eos_token_id in .* is -1; .* token id"),
    ('{"eos_token_id": [true]}', r"eos_token_id in .* is \[True\]"),
  ):
    (directory / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
      read_config(directory, **LADDER)


def test_a_flat_configuration_and_a_missing_head_dim_are_read(tmp_path):
  config = without("head_dim") | {"model_type": "qwen3_5"}
  subs = [branch.sub for branch in of_text(tmp_path, config).branches]
  widths = {sub.head_width for sub in subs if sub.kind == "attention"}
  assert widths == {256}


def test_a_wrapper_decides_whether_the_head_is_tied(tmp_path):
  for outer, inner, tied in (
    (None, True, False),
    (True, False, True),
    (False, True, False),
  ):
    text = tiny_config(tie_word_embeddings=inner)
    wrapper = {"model_type": "qwen3_5", "text_config": text}
    wrapper["vision_config"] = {"depth": 1}
    wrapper["hidden_size"] = text["hidden_size"]  # says it again
    if outer is not None:
      wrapper["tie_word_embeddings"] = outer
    assert of_text(tmp_path, wrapper).tie_embeddings == tied
  wrapper["hidden_size"] = 17
  with pytest.raises(ValueError, match=r"hidden_size in .* is 17; this key"):
    of_text(tmp_path, wrapper)


@pytest.mark.parametrize(
  "changes",
  [
    {"attention_multiplier": 0.5},
    {"use_qk_norm": False},
    {"final_logit_softcapping": 30.0},
    {"sliding_window": 4096},
    {"an unknown\nkey": 1},
  ],
)
def test_a_key_that_nobody_reads_is_refused(tmp_path, changes):
  with pytest.raises(ValueError, match="this key is not known here") as caught:
    config_of(tmp_path, changes)
  assert "\n" not in str(caught.value)


def test_keys_that_change_nothing_are_taken(tmp_path):
  plain = config_of(tmp_path)
  harmless = {
    "_name_or_path": "x",
    "attention_dropout": 0.1,
    "id2label": {"0": "a"},
    "initializer_range": 0.5,
    "mamba_ssm_dtype": "float32",
    "mlp_only_layers": [],
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "output_gate_type": "swish",
    "sliding_window": None,
    "temperature": 0.5,
    "use_cache": False,
    "vision_config": {"depth": 12},
  }
  assert config_of(tmp_path, harmless) == plain


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"num_hidden_layers": 10**8},
      "num_hidden_layers .* is 100000000; .* 1024",
    ),
    (
      {"num_hidden_layers": 10**8, "layer_types": None},
      "num_hidden_layers .* is 100000000; it must be at most 1024",
    ),
    ({"hidden_size": 10**400}, r"hidden_size .* is 1000*\.\.\.0*; .* at most"),
    (
      {"rms_norm_eps": 10**400},
      r"rms_norm_eps .* is 1000*\.\.\.0*; .* at most",
    ),
    ({"rope_theta": 10**400}, r"rope_theta .* is 10*\.\.\.0*; .* at most"),
    ({"vocab_size": 2**30}, "vocab_size .* is 1073741824; .* at most 16777216"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings .* at most"),
    ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype .* only 'float32'"),
    ({"output_gate_type": "sigmoid"}, "output_gate_type .* only 'swish'"),
    ({"attention_bias": 0}, "attention_bias .* is 0; only False"),
    ({"model_type": "mistral"}, "'mistral'; .* qwen3_5_text, qwen3_5"),
    ({"model_type": ["x"]}, r"model_type .* is \['x'\]; those that can be"),
  ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    of_text(tmp_path, tiny_config(**changes))
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"[" * 100_000, "is not JSON: it is nested too deep"),
    (b'{"a":' * 100 + b"1" + b"}" * 100, "is not JSON: it is nested too deep"),
    (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    (b'{"a": 1, "a": 1}', "is not JSON: the key 'a' stands there twice"),
    (b"\xef\xbb\xbf{}", "is not JSON"),
    (b"\xff", "is not JSON"),
    (b"", "is not JSON"),
  ],
)
def test_damaged_json_is_refused_in_one_sentence(tmp_path, content, message):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    read_config(tmp_path)
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 500


def test_one_rung_is_taken_where_widths_ask_for_it_and_said(tmp_path):
  directory = tiny(tmp_path)
  with pytest.warns(UserWarning, match="takes a ladder of one rung, .4,.: lad"):
    config = read_config(directory)
  assert config.numerics.ladder == (4,)
  wide = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "head_dim": 64,
  }
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    config = read_config(tiny(tmp_path, wide))
  assert config.numerics.ladder == (1, 2, 4, 8, 16)
  with pytest.raises(ValueError, match=r"ladder is .* width is 16"):
    read_config(tiny(tmp_path, {}), ladder=(1, 2))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("directory", [3, None, ["model"], 1.5])
def test_what_names_no_folder_is_refused(directory):
  for load in (read_config, load_pretrained):
    with pytest.raises(ValueError, match="it must be the path of a folder"):
      load(directory)
