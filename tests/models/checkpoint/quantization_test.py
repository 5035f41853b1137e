"""Quantised weights: their values to the bit, their logits, refusals."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparse_prefix_jax.models.checkpoint import load_pretrained, read_config
from sparse_prefix_jax.models.checkpoint.quantization import Quantization
from tests.models import float64_model
from tests.models.loaded_logits import CHOICES, loaded_logits
from tests.models.tiny_checkpoint import (
  quantized_fp8,
  quantized_int8,
  tiny,
  tiny_config,
  tiny_tensors,
  write,
)

TOKENS = np.random.default_rng(0).integers(0, 32, 50)
GATE = "model.layers.0.mlp.gate_proj.weight"
FP8 = {
  "quant_method": "fp8",
  "activation_scheme": "dynamic",
  "fmt": "e4m3",
  "weight_block_size": [10, 6],  # neither divides a shape of the model
}
INT8 = {
  "quant_method": "compressed-tensors",
  "format": "int-quantized",
  "quantization_status": "compressed",
  "kv_cache_scheme": None,
  "ignore": ["lm_head"],
  "config_groups": {
    "group_0": {
      "targets": ["Linear"],
      "weights": {
        "num_bits": 8,
        "type": "int",
        "strategy": "channel",
        "symmetric": True,
        "dynamic": False,
        "group_size": None,
        "observer": "minmax",
      },
      "input_activations": {
        "num_bits": 8,
        "type": "int",
        "strategy": "token",
        "symmetric": True,
        "dynamic": True,
      },
      "output_activations": None,
    }
  },
}


def is_wide(name):
  """Whether quantisers take it: a weight of a large product."""
  return "_proj" in name and "in_proj_a" not in name and "in_proj_b" not in name


def fp8(directory, scheme=None, scale_dtype=np.float32):
  config = tiny_config(quantization_config=scheme or FP8)
  block = config["quantization_config"].get("weight_block_size")
  tensors = tiny_tensors(config)
  for name in list(filter(is_wide, tensors)):
    stored, scale = quantized_fp8(tensors[name], block, scale_dtype)
    tensors |= {name: stored, f"{name}_scale_inv": scale}
  return write(directory, config, tensors), tensors


def int8(directory):
  config = tiny_config(quantization_config=INT8)
  tensors = tiny_tensors(config)
  for name in list(filter(is_wide, tensors)):
    stored, scale = quantized_int8(tensors[name])
    tensors |= {name: stored, f"{name}_scale": scale}
  return write(directory, config, tensors), tensors


def assert_logits(directory):
  expected = float64_model.logits(directory, TOKENS)
  assert np.abs(expected).max() > 1
  got = loaded_logits(directory, TOKENS)
  np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
  "scale_dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu]
)
def test_fp8_is_multiplied_in_blocks_in_float32_and_rounded_once(
  tmp_path, scale_dtype
):
  directory, tensors = fp8(tmp_path, scale_dtype=scale_dtype)
  stored = tensors[GATE].astype(np.float32)
  scale = tensors[f"{GATE}_scale_inv"].astype(np.float32)
  assert scale.shape == (3, 3)
  expected = np.empty_like(stored)
  for i, j in np.ndindex(*stored.shape):
    expected[i, j] = stored[i, j] * scale[i // 10, j // 6]
  for dtype in ("float32", "bfloat16"):
    model, _ = load_pretrained(directory, **(CHOICES | {"dtype": dtype}))
    got = model.branches[1].sub.gate[...]
    rounded = jnp.asarray(expected).astype(dtype)
    np.testing.assert_array_equal(got, rounded)
  assert_logits(directory)


def test_fp8_with_one_scale_for_a_weight(tmp_path):
  scheme = FP8 | {"weight_block_size": None}
  directory, tensors = fp8(tmp_path, scheme)
  assert tensors[f"{GATE}_scale_inv"].shape == ()
  assert_logits(directory)


def test_int8_is_multiplied_row_by_row(tmp_path):
  directory, tensors = int8(tmp_path)
  expected = tensors[GATE].astype(np.float32) * tensors[f"{GATE}_scale"]
  model, _ = load_pretrained(directory, **CHOICES)
  np.testing.assert_array_equal(model.branches[1].sub.gate[...], expected)
  assert_logits(directory)


def test_fused_experts_have_a_grid_of_scales_each():
  weight, scale = (3, 5, 7), np.arange(3 * 3 * 2, dtype=np.float32)
  scale = scale.reshape(3, 3, 2)
  scheme = Quantization("F8_E4M3", "_scale_inv", (2, 4), False, ())
  got = scheme.factors(scale, weight, 1, 3)
  assert got.shape == (2, 5, 7)
  for e, i, j in np.ndindex(*got.shape):
    assert got[e, i, j] == scale[1 + e, i // 2, j // 4]


def test_a_block_may_be_larger_than_its_weight(tmp_path):
  scheme = FP8 | {"weight_block_size": [2**20, 2**20]}
  directory, tensors = fp8(tmp_path, scheme)
  assert tensors[f"{GATE}_scale_inv"].shape == (1, 1)
  assert_logits(directory)


@pytest.mark.parametrize(
  ("scheme", "message"),
  [
    (
      {"quant_method": "awq", "bits": 4},
      "quant_method in .* is 'awq'; only fp8",
    ),
    ({"bits": 4}, "quant_method in .* is None; only fp8"),
    (3, "quantization_config in .* is 3; it must be an object"),
    (FP8 | {"activation_scheme": "static"}, "activation_scheme .* 'static'"),
    (FP8 | {"fmt": "e5m2"}, "fmt in .* is 'e5m2'; only 'e4m3'"),
    (FP8 | {"weight_block_size": [128]}, "weight_block_size .* two ints"),
    (FP8 | {"weight_block_size": [0, 1]}, "weight_block_size .* two ints"),
    (FP8 | {"kv_cache_scheme": {"bits": 8}}, "kv_cache_scheme in .* not known"),
    (FP8 | {"modules_to_not_convert": 3}, "modules_to_not_convert .* list"),
    (INT8 | {"format": "pack-quantized"}, "format .* 'pack-quantized'; only"),
    (INT8 | {"format": None}, "format in .* is None; only int-quantized"),
    (INT8 | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme in .* only"),
    (
      INT8 | {"config_groups": {"a": {"weights": {"num_bits": 4}}}},
      "num_bits in weights in a in config_groups .* is 4; only 8",
    ),
    (
      INT8 | {"config_groups": {"a": {"weights": {"strategy": "group"}}}},
      "strategy in .* is 'group'; only 'channel'",
    ),
    (
      INT8
      | {"config_groups": {"a": {"input_activations": {"dynamic": False}}}},
      "dynamic in .* is False; only True",
    ),
  ],
)
def test_every_other_quantisation_is_refused_by_name(tmp_path, scheme, message):
  directory = tiny(tmp_path, {"quantization_config": scheme})
  for read in (read_config, load_pretrained):
    with pytest.raises(ValueError, match=message) as caught:
      read(directory, **CHOICES)
    assert "\n" not in str(caught.value)


def test_weights_quantised_by_mlx_are_refused_by_name(tmp_path):
  scheme = {"group_size": 64, "bits": 4}
  directory = tiny(tmp_path, {"quantization": scheme})
  with pytest.raises(ValueError, match=r"quantization in .* MLX"):
    read_config(directory, **CHOICES)


def assert_refused(directory, tensors, message, **changes):
  config = tiny_config(**changes)
  with pytest.raises(ValueError, match=message) as caught:
    load_pretrained(write(directory, config, tensors), **CHOICES)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "scheme"), [(fp8, FP8), (int8, INT8)])
def test_weights_and_scales_belong_together(tmp_path, make, scheme):
  _, tensors = make(tmp_path)
  suffix = "_scale_inv" if scheme is FP8 else "_scale"
  scale, kept = GATE + suffix, {"quantization_config": scheme}
  alone = {n: value for n, value in tensors.items() if n != scale}
  assert_refused(
    tmp_path, alone, "without its scale, '.*gate_proj.weight_s", **kept
  )
  orphan = tensors | {f"model.layers.7.x.weight{suffix}": tensors[scale]}
  assert_refused(
    tmp_path, orphan, "would be ignored.* 'model.layers.7.x", **kept
  )
  plain = tiny_tensors(tiny_config())[GATE]
  message = f"would be ignored.* '{scale}'"
  assert_refused(tmp_path, tensors | {GATE: plain}, message, **kept)
  other = tensors | {scale: tensors[scale][:-1]}
  assert_refused(
    tmp_path, other, "a scale of a weight .* must be .* of shape", **kept
  )
  other = tensors | {scale: tensors[scale].astype(np.int32)}
  assert_refused(tmp_path, other, "is I32 of shape .* a scale", **kept)
  assert_refused(
    tmp_path, tensors, "would be ignored", quantization_config=None
  )


def test_a_quantised_weight_needs_a_configuration_that_says_so(tmp_path):
  _, tensors = fp8(tmp_path)
  bare = {n: v for n, v in tensors.items() if not n.endswith("_scale_inv")}
  assert_refused(
    tmp_path, bare, "is F8_E4M3, which no quantization_config explains"
  )


@pytest.mark.parametrize(
  "name", ["input_scale", "k_scale", "v_scale", "activation_scale"]
)
def test_static_scales_are_refused_by_name(tmp_path, name):
  _, tensors = fp8(tmp_path)
  extra = f"model.layers.1.self_attn.q_proj.{name}"
  tensors = tensors | {extra: np.ones((), np.float32)}
  assert_refused(
    tmp_path, tensors, f"such as '{extra}'", quantization_config=FP8
  )


def test_modules_that_were_not_converted_are_plain(tmp_path):
  kept = "model.language_model.layers.0.mlp"
  scheme = FP8 | {"modules_to_not_convert": ["lm_head", kept]}
  _, tensors = fp8(tmp_path)
  message = "'.*layers.0.mlp.* is F8_E4M3, but its module is one that was not"
  assert_refused(tmp_path, tensors, message, quantization_config=scheme)
  plain = tiny_tensors(tiny_config())
  mlp = {n: v for n, v in plain.items() if "layers.0.mlp" in n}
  tensors = {
    n: v
    for n, v in (tensors | mlp).items()
    if not (n.endswith("_scale_inv") and "layers.0.mlp" in n)
  }
  directory = write(tmp_path, tiny_config(quantization_config=scheme), tensors)
  assert_logits(directory)
