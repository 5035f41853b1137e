import json

import pytest

from sparse_prefix_jax.models.named import named_config
from sparse_prefix_jax.models.presets import preset


def test_fields_that_are_none_replace_nothing():
  assert named_config("tiny", None, dtype=None) == preset("tiny")
  config = named_config("tiny", None, max_length=128)
  assert config == preset("tiny", max_length=128)


@pytest.mark.parametrize("named", [(None, None), ("tiny", "folder")])
def test_one_model_is_named(named):
  with pytest.raises(ValueError, match="one model is needed"):
    named_config(*named)


def test_a_folder_is_read(tmp_path):
  file = tmp_path / "config.json"
  file.write_text(json.dumps({"model_type": "unheard_of"}), "utf-8")
  with pytest.raises(ValueError, match="unheard_of"):
    named_config(None, str(tmp_path))
