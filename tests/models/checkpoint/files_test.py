"""Which files are read: the index, shards, stale files, prefixes."""

import json
import re

import jax
import numpy as np
import pytest

from sparse_prefix_jax.models.checkpoint import load_pretrained
from sparse_prefix_jax.models.checkpoint.files import (
  plain_name,
  stored_tensors,
)
from tests.models.loaded_logits import CHOICES
from tests.models.tiny_checkpoint import (
  encode,
  tiny,
  tiny_config,
  tiny_tensors,
  write,
)
from tests.trees import assert_same_bits

INDEX = "model.safetensors.index.json"


def load(directory):
  return load_pretrained(directory, **CHOICES)[0]


def assert_loads_as_one_file(directory, tmp_path):
  whole = tiny(tmp_path / "whole")
  assert_same_bits(*map(jax.tree.leaves, (load(directory), load(whole))))


def edit_index(directory, edit):
  path = directory / INDEX
  index = json.loads(path.read_text())
  edit(index["weight_map"])
  path.write_text(json.dumps(index))


def assert_refused(directory, message, error=ValueError):
  with pytest.raises(error, match=message) as caught:
    load(directory)
  assert "\n" not in str(caught.value)
  assert str(caught.value).endswith(".")


def test_shards_are_read_with_an_index_and_without(tmp_path):
  directory = tiny(tmp_path / "shards", shards=3)
  assert_loads_as_one_file(directory, tmp_path)
  (directory / INDEX).unlink()
  assert_loads_as_one_file(directory, tmp_path)


def test_shards_may_have_any_names_with_an_index(tmp_path):
  directory = tiny(tmp_path / "shards", shards=2)
  old = "model-00002-of-00002.safetensors"
  (directory / old).rename(directory / "other.safetensors")
  assert_refused(
    directory, f"lacks '{old}', which its index", FileNotFoundError
  )
  edit_index(
    directory,
    lambda places: places.update(
      {n: "other.safetensors" for n, file in places.items() if file == old}
    ),
  )
  assert_loads_as_one_file(directory, tmp_path)


def test_a_missing_shard_is_named(tmp_path):
  directory = tiny(tmp_path, shards=3)
  name = "model-00002-of-00003.safetensors"
  (directory / name).unlink()
  assert_refused(
    directory, f"lacks '{name}', which its index", FileNotFoundError
  )
  (directory / INDEX).unlink()
  assert_refused(directory, f"lacks {name}", FileNotFoundError)


def test_a_stale_file_beside_shards_is_refused(tmp_path):
  directory = tiny(tmp_path, shards=2)
  stale = encode({"model.norm.weight": np.zeros(16, np.float32)})
  (directory / "model.safetensors").write_bytes(stale)
  assert_refused(
    directory, r"model\.safetensors is not named by the index beside it"
  )
  (directory / INDEX).unlink()
  assert_refused(
    directory, "model.norm.weight.* holds 'model.norm.weight', .* stale"
  )


def test_a_tensor_in_two_files_is_refused(tmp_path):
  directory = tiny(tmp_path)
  again = encode({"norm.weight": np.zeros(16, np.float32)})
  (directory / "again.safetensors").write_bytes(again)
  message = "holds the tensor 'norm.weight' and .* holds 'model.norm.weight'"
  assert_refused(directory, message)


def test_an_index_that_does_not_tell_the_truth_is_refused(tmp_path):
  directory = tiny(tmp_path, shards=2)
  first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))

  def swap(places):
    name = next(n for n, file in places.items() if file == first)
    places[name] = second

  edit_index(directory, swap)
  assert_refused(directory, f"{first} holds the tensor .* places in '{second}'")
  tiny(directory, shards=2)
  edit_index(directory, lambda places: places.pop("lm_head.weight"))
  assert_refused(
    directory, "'lm_head.weight', which the index places in no file"
  )
  tiny(directory, shards=2)
  edit_index(directory, lambda places: places.update(extra=first))
  assert_refused(directory, f"{first} does not hold the tensor 'extra'")


@pytest.mark.parametrize(
  ("places", "message"),
  [
    ([], r"weight_map in .* is \[\]; it must be an object of names"),
    ({"a": 1}, "weight_map in .* is .*; it must be an object of names"),
    (None, "weight_map in .* is None"),
    ({"a": "../config.json"}, r"lacks '\.\./config\.json'"),
    ({"a": "x" * 10_000}, r"lacks 'xxx.*\.\.\.xxx"),
    ({"a": "\0\n"}, r"lacks '\\x00\\n'"),
  ],
)
def test_a_damaged_index_is_refused(tmp_path, places, message):
  directory = tiny(tmp_path, shards=2)
  (directory / INDEX).write_text(json.dumps({"weight_map": places}))
  error = FileNotFoundError if message.startswith("lacks") else ValueError
  assert_refused(directory, message, error)


def test_two_indexes_are_refused(tmp_path):
  directory = tiny(tmp_path, shards=2)
  (directory / "old.safetensors.index.json").write_text("{}")
  assert_refused(directory, f"holds {INDEX} and old.*; only one index can hold")


def test_folders_named_like_files_are_refused(tmp_path):
  for number, name in enumerate(
    ("config.json", "model.safetensors", INDEX, "generation_config.json")
  ):
    directory = tiny(tmp_path / str(number))
    (directory / name).unlink(missing_ok=True)
    (directory / name).mkdir()
    assert_refused(
      directory, f"{re.escape(name)} is a folder; it must be a file"
    )


def test_a_file_is_no_directory(tmp_path):
  path = tiny(tmp_path) / "config.json"
  assert_refused(path, r"config\.json does not exist", FileNotFoundError)
  with pytest.raises(FileNotFoundError, match="is no folder"):
    stored_tensors(path)


@pytest.mark.parametrize(
  "prefix",
  [
    "",
    "model.",
    "language_model.model.",
    "model.language_model.",
    "base_model.model.model.",
    "module.model.",
    "module._orig_mod.model.",
    "base_model.model.model.language_model.",
  ],
)
def test_prefixes_of_wrappers_and_trainers_are_understood(tmp_path, prefix):
  config = tiny_config()
  tensors = {
    prefix + name.removeprefix("model."): value
    for name, value in tiny_tensors(config).items()
  }
  directory = write(tmp_path / "prefixed", config, tensors)
  assert_loads_as_one_file(directory, tmp_path)


def test_prefixes_that_are_not_understood_are_named(tmp_path):
  config = tiny_config()
  tensors = {f"llm.{n}": value for n, value in tiny_tensors(config).items()}
  directory = write(tmp_path, config, tensors)
  assert_refused(
    directory, r"has no tensor embed_tokens.* such as 'llm\.model\."
  )
  adapters = {
    "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.zeros(
      (2, 16), np.float32
    )
  }
  directory = tiny(tmp_path, tensors=adapters)
  assert_refused(
    directory, "would be ignored: 1 .* such as '.*lora_A.weight' in model"
  )


def test_a_prefix_is_no_part_of_another_word():
  assert plain_name("models.norm.weight") == "models.norm.weight"
  assert plain_name("model") == "model"
