"""Weights: the whole model or one sentence, one tensor after another."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sparse_prefix_jax.models.checkpoint import load_pretrained, read_config
from tests.models import float64_model
from tests.models.loaded_logits import CHOICES, loaded_logits
from tests.models.tiny_checkpoint import (
  tiny,
  tiny_config,
  tiny_tensors,
  write,
)

TOKENS = np.random.default_rng(1).integers(0, 32, 50)
LAYER = "model.layers.0."


def assert_refused(directory, message, **changes):
  with pytest.raises(ValueError, match=message) as caught:
    load_pretrained(directory, **(CHOICES | changes))
  assert "\n" not in str(caught.value)
  assert str(caught.value).endswith(".")


def assert_logits(directory):
  expected = float64_model.logits(directory, TOKENS)
  got = loaded_logits(directory, TOKENS)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_head_of_its_own_is_taken_under_tied_embeddings(tmp_path):
  changes = {"tie_word_embeddings": True}
  own = {"lm_head.weight": tiny_tensors(tiny_config())["lm_head.weight"]}
  directory = tiny(tmp_path, changes, own)
  assert read_config(directory, **CHOICES).tie_embeddings
  model, config = load_pretrained(directory, **CHOICES)
  assert not config.tie_embeddings
  np.testing.assert_array_equal(model.unembedding[...], own["lm_head.weight"])
  assert_logits(directory)
  # Who asks for tied embeddings does not get another head in silence.
  assert_refused(directory, "would be ignored: .*lm_head", tie_embeddings=True)


def test_a_head_that_repeats_the_embeddings_is_taken_out(tmp_path):
  changes = {"tie_word_embeddings": True}
  embedding = tiny_tensors(tiny_config(**changes))["model.embed_tokens.weight"]
  directory = tiny(tmp_path, changes, {"lm_head.weight": embedding})
  model, config = load_pretrained(directory, **CHOICES)
  assert config.tie_embeddings and not hasattr(model, "unembedding")
  assert_logits(directory)


@pytest.mark.parametrize(
  "name",
  [
    LAYER + "self_attn.q_proj.bias",
    LAYER + "linear_attn.conv1d.bias",
    LAYER + "mlp.up_proj.lora_A.weight",
    "model.layers.2.input_layernorm.weight",
    "score.weight",
    "a line\nbreak",
  ],
)
def test_a_tensor_that_nobody_uses_is_refused(tmp_path, name):
  directory = tiny(tmp_path, tensors={name: np.zeros(16, np.float32)})
  named = repr(name).strip("'").replace("\\", "\\\\").replace(".", r"\.")
  assert_refused(
    directory, f"would be ignored: 1 that .* such as '{named}' in model"
  )


@pytest.mark.parametrize(
  "name",
  [
    "mtp.fc.weight",
    "model.visual.patch_embed.proj.weight",
    LAYER + "self_attn.rotary_emb.inv_freq",
  ],
)
def test_tensors_beside_the_text_model_are_passed_over(tmp_path, name):
  assert_logits(tiny(tmp_path, tensors={name: np.zeros(3, np.float32)}))


def test_more_layers_in_the_configuration_than_in_the_file(tmp_path):
  kinds = ["linear_attention"] * 1000
  changes = {"num_hidden_layers": 1000, "layer_types": kinds}
  tensors = tiny_tensors(tiny_config())
  directory = write(tmp_path, tiny_config(**changes), tensors)
  assert_refused(directory, "has no tensor layers.1.linear_attn.A_log")


@pytest.mark.parametrize(
  "shape", [(24,), (24, 4), (24, 4, 1), (24, 1, 4, 1), (24, 2, 4), ()]
)
def test_convolutions_of_other_ranks_are_refused(tmp_path, shape):
  name = LAYER + "linear_attn.conv1d.weight"
  directory = tiny(tmp_path, tensors={name: np.zeros(shape, np.float32)})
  assert_refused(directory, r"conv1d\.weight in .* has shape \(.*\)[;,]")


def test_tensors_without_values_are_refused(tmp_path):
  """Their shapes may say anything, since no byte stands behind them."""
  directory = tiny(tmp_path, {"tie_word_embeddings": True})
  path = directory / "model.safetensors"
  content = path.read_bytes()
  data = 8 + int.from_bytes(content[:8], "little")
  for size in (0, 10**15, 10**400):
    header = json.loads(content[8:data])
    empty = {"dtype": "F32", "shape": [size, 0], "data_offsets": [0, 0]}
    header["lm_head.weight"] = empty
    text = json.dumps(header).encode()
    changed = len(text).to_bytes(8, "little") + text + content[data:]
    path.write_bytes(changed)
    assert_refused(
      directory, r"lm_head\.weight in .* has shape \(.*, 0\); config"
    )


def test_projections_that_do_not_fit_together_are_refused(tmp_path):
  name = LAYER + "linear_attn.in_proj_a.weight"
  directory = tiny(tmp_path, tensors={name: np.zeros((2, 15), np.float32)})
  assert_refused(
    directory, r"in_proj_a.* and .*in_proj_b.* has shape \(2, 15\) and"
  )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_said(tmp_path, value):
  name = LAYER + "mlp.up_proj.weight"
  weight = tiny_tensors(tiny_config())[name]
  weight[3, 5] = value
  directory = tiny(tmp_path, tensors={name: weight})
  assert_refused(directory, f"'{name}' in .* holds values that are not finite")


def test_weights_that_are_no_floats_are_refused(tmp_path):
  name = LAYER + "mlp.up_proj.weight"
  directory = tiny(tmp_path, tensors={name: np.zeros((24, 16), np.int8)})
  assert_refused(
    directory, f"'{name}' in .* is I8, which no quantization_config"
  )


def test_widths_beyond_any_file_are_refused_before_anything_is_made(tmp_path):
  directory = tiny(tmp_path)
  path = directory / "config.json"
  wide = ("hidden_size", "intermediate_size", "linear_key_head_dim")
  wide += ("linear_value_head_dim", "head_dim", "num_attention_heads")
  wide += ("num_key_value_heads", "linear_num_key_heads")
  wide += ("linear_num_value_heads", "linear_conv_kernel_dim")
  config = tiny_config() | dict.fromkeys(wide, 2**20)
  path.write_text(json.dumps(config | {"vocab_size": 2**24}))
  assert_refused(directory, "has shape .* config.json asks for")


def test_half_floats_and_doubles_are_read(tmp_path):
  config, tensors = tiny_config(), tiny_tensors(tiny_config())
  for dtype in (np.float16, np.float64):
    cast = {name: value.astype(dtype) for name, value in tensors.items()}
    assert_logits(write(tmp_path, config, cast))


MEASURE = """
import pathlib, sys
from sparse_prefix_jax import load_pretrained

def peak():
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  line = next(line for line in lines if line.startswith("VmHWM"))
  return int(line.split()[1]) * 1024

small, large, dtype = sys.argv[1:]
load_pretrained(small, ladder=(4,), dtype=dtype)
before = peak()
load_pretrained(large, ladder=(4,), dtype=dtype)
print(peak() - before)
"""


def test_two_copies_of_the_largest_tensor_are_in_memory(tmp_path):
  """Measured by the system in a process of its own, in pages that it holds."""
  changes = {"intermediate_size": 1 << 20, "vocab_size": 1 << 18}
  small, large = tiny(tmp_path / "a"), tiny(tmp_path / "b", changes)
  largest = 16 * (1 << 20)
  weights = 2 * 3 * largest + 2 * 16 * (1 << 18)
  for dtype, size in (("float32", 4), ("bfloat16", 2)):
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(MEASURE), small, large, dtype],
      capture_output=True,
      text=True,
      check=True,
    )
    held, beside = weights * size, 2 * largest * size
    slack = 32 << 20  # what allocators and threads keep, whatever is loaded
    assert held <= int(done.stdout) <= held + beside + slack
