"""Every choice that cannot work is refused, naming its field."""

import dataclasses
import json
import math

import pytest

from sparse_prefix_jax import preset
from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  GatedDeltaNetConfig,
  Norm,
  Numerics,
  SwiGLUConfig,
)
from sparse_prefix_jax.layers.rotary import RopeScaling
from sparse_prefix_jax.models import ModelConfig
from sparse_prefix_jax.models.config import differences
from tests.models_for_tests import TINY, tiny_config

PARTS = (ModelConfig, Numerics, SwiGLUConfig)
PARTS += (GatedDeltaNetConfig, AttentionConfig)
COUNTS = [
  field.name
  for part in PARTS
  for field in dataclasses.fields(part)
  if field.type is int
]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name, value):
  with pytest.raises(ValueError, match=f"^{name} is {value}; .* at least"):
    tiny_config(**{name: value})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"decode_rows": 1}, "decode_rows is 1; it must be at least 2"),
    ({"head_rows": 1}, "head_rows is 1; it must be at least 2"),
    ({"window": 1}, "window is 1; it must be at least 2"),
    ({"value_heads": 3}, "value_heads is 3; .* multiple of key_heads = 2"),
    ({"heads": 5}, "heads is 5; .* multiple of kv_heads = 2"),
    ({"rotary_width": 15}, "rotary_width is 15; it must be even"),
    ({"rotary_width": 0}, "rotary_width is 0; it must be even and at least 2"),
    ({"rotary_width": 34}, "rotary_width is 34; .* at most head_width = 32"),
    ({"layer_types": ()}, "layer_types is empty"),
    ({"layer_types": ("mamba",)}, "layer_types holds 'mamba'; .* attention"),
    ({"dtype": "float16"}, "dtype is 'float16'; .* float32, bfloat16"),
    ({"precision": "exact"}, "precision is 'exact'; .* highest"),
    ({"implementation": "triton"}, "implementation is 'triton'; .* auto, xla"),
    ({"ladder": ()}, r"ladder is \(\); .* ascending"),
    ({"ladder": (0, 1)}, r"ladder is \(0, 1\); .* ascending"),
    ({"ladder": (2, 1)}, r"ladder is \(2, 1\); .* ascending"),
    ({"ladder": (2, 2)}, r"ladder is \(2, 2\); .* ascending"),
    ({"chunk": 40}, "chunk is 40; it must be a multiple of 16"),
    ({"chunk": 32}, "chunk is 32, .* program has 32 rows; .* at least 64"),
    ({"width": 64.0}, "width is 64.0; it must be an int"),
    ({"width": True}, "width is True; it must be an int"),
    ({"width": "64"}, "width is '64'; it must be an int"),
    ({"max_length": 2**31}, "max_length is 2147483648; .* most 1073741824"),
    ({"vocab_size": 2**30 + 1}, "vocab_size is 1073741825; .* at most"),
    ({"eps": -1}, "eps is -1; it must be a finite number above 0"),
    ({"eps": 0.0}, "eps is 0.0; it must be a finite number above 0"),
    ({"eps": math.nan}, "eps is nan; it must be a finite number above 0"),
    ({"eps": None}, "eps is None; it must be a finite number above 0"),
    ({"rope_theta": -5}, "rope_theta is -5; .* finite number above 0"),
    ({"rope_theta": math.inf}, "rope_theta is inf; .* finite number"),
    ({"rope_theta": 10**400}, "rope_theta is 10.*; .* finite number above 0"),
    ({"rope_scaling": {"kind": "yarn"}}, "rope_scaling .* None or a RopeScal"),
    (
      {"rope_scaling": RopeScaling(kind="yarn", factor=2.0), "rope_theta": 1.0},
      "rope_theta is 1.0; with yarn it must be above 1",
    ),
    ({"end_ids": [1]}, r"end_ids is \[1\]; it must be a tuple"),
    ({"end_ids": (-1,)}, r"end_ids is \(-1,\); it must hold token ids"),
    ({"end_ids": (True,)}, r"end_ids is \(True,\); it must hold token ids"),
    ({"end_ids": (7, 512)}, r"end_ids is \(7, 512\); .* vocab_size = 512"),
    ({"tie_embeddings": "no"}, "tie_embeddings is 'no'; .* True or False"),
    ({"dtype": 32}, "dtype is 32; it must be a string"),
    ({"layer_types": ["attention"]}, "layer_types is .*; it must be a tuple"),
    ({"layer_types": "attention"}, "layer_types is .*; it must be a tuple"),
    ({"ladder": [1]}, r"ladder is \[1\]; it must be a tuple"),
    ({"ladder": (1.0,)}, r"ladder is \(1\.0,\); .* ascending ints"),
    ({"ladder": (10**12,)}, "chunk is 64, .* most 16777216"),
    ({"chunk": 2**30}, "chunk is 1073741824, .* most 16777216"),
    ({"ladder": (True,)}, r"ladder is \(True,\); .* ascending ints"),
    ({"ladder": ("1",)}, r"ladder is \('1',\); .* ascending ints"),
    ({"width": 96}, "width is 96; .* multiple of 64 wide"),
    ({"hidden": 100}, "hidden is 100; .* multiple of 64 wide"),
    ({"key_width": 16}, r"key_heads \* key_width is 32; .* single rung"),
    ({"value_width": 24}, r"value_heads \* value_width is 96; .* single rung"),
    ({"head_width": 16}, r"kv_heads \* head_width is 32; .* single rung"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_breaks_a_rule_is_refused_in_one_sentence(changes, message):
  with pytest.raises(ValueError, match=message) as refused:
    tiny_config(**changes)
  assert str(refused.value).endswith(".")
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, "1"])
@pytest.mark.usefixtures("unchecked_types")
def test_a_scale_of_scores_that_is_none_is_refused(scale):
  with pytest.raises(ValueError, match=r"^scale is .*; .* above 0 or None"):
    AttentionConfig(
      heads=4, kv_heads=2, head_width=32, rotary_width=None, scale=scale
    )


@pytest.mark.parametrize("name", ["embedding_scale", "logits_scale"])
@pytest.mark.usefixtures("unchecked_types")
def test_a_scale_of_the_model_that_is_none_is_refused(name):
  with pytest.raises(ValueError, match=f"^{name} is 0; .* number above 0"):
    tiny_config().replace(**{name: 0})


@pytest.mark.parametrize(
  "changes",
  [
    {"ladder": (1,), "chunk": 16},
    {"ladder": (4, 8), "chunk": 16},
    {"ladder": (2,), "width": 96, "hidden": 100, "key_width": 16},
    {"layer_types": ("attention",), "value_width": 24},
    {"layer_types": ("gated_delta_net",), "head_width": 16},
    {"rotary_width": 32},
    {"rope_scaling": RopeScaling(kind="yarn", factor=2.0), "end_ids": (2, 0)},
    {"max_length": 2**30},
    {"decode_rows": 2, "head_rows": 2, "window": 2},
  ],
)
def test_what_keeps_every_rule_is_taken(changes):
  known = {}
  for part in parts_of(tiny_config(**changes)):
    known |= {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
  kinds = {"layer_types", *({"value_width", "head_width"} & {*changes})}
  if "layer_types" in changes:  # what no layer has is checked, and not kept
    changes = {n: x for n, x in changes.items() if n not in kinds}
  assert {name: known[name] for name in changes} == changes


def test_equal_configurations_are_one_static_argument():
  assert hash(preset("tiny")) == hash(preset("tiny"))
  assert preset("tiny") == preset("tiny")
  assert preset("tiny") == tiny_config()
  assert preset("tiny") != tiny_config(eps=1e-5)
  with pytest.raises(dataclasses.FrozenInstanceError):
    preset("tiny").width = 128


def parts_of(config):
  """A configuration, its numerics and its sublayers."""
  return [config, config.numerics, *(branch.sub for branch in config.branches)]


def test_a_hybrid_is_two_branches_per_layer():
  config = tiny_config(eps=1e-5)
  mixer, first, attention, second = config.branches
  net = GatedDeltaNetConfig(
    key_heads=2, value_heads=4, key_width=32, value_width=32, eps=1e-5
  )
  assert mixer == Branch(net, pre=Norm(eps=1e-5))
  assert net.mixed_width == 2 * 64 + 128
  assert attention.sub == AttentionConfig(
    heads=4, kv_heads=2, head_width=32, rotary_width=16, eps=1e-5
  )
  assert first == second == Branch(SwiGLUConfig(hidden=128), pre=Norm(eps=1e-5))
  assert config.final_norm == Norm(eps=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"branches": ()}, "branches is empty; .* at least one"),
    ({"page_dtype": "int4"}, "page_dtype is 'int4'; it must be 'int8' or None"),
    (
      {"page_dtype": "int8", "implementation": "mosaic_gpu"},
      "implementation is 'mosaic_gpu' and page_dtype .* no kernel reads",
    ),
    ({"branches": []}, r"branches is \[\]; it must be a tuple"),
    ({"branches": (3,)}, r"branches\[0\] is 3; it must be a Branch"),
    ({"final_norm": 1e-6}, "final_norm is 1e-06; it must be a Norm"),
    ({"numerics": "fast"}, "numerics is 'fast'; it must be a Numerics"),
    ({"hidden": 64}, "hidden is 64, but no such field .* branches, .* chunk"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_parts_that_are_none_are_refused(changes, message):
  with pytest.raises(ValueError, match=message) as refused:
    preset("tiny", **changes)
  assert str(refused.value).endswith(".")


def test_pages_that_nobody_keeps_have_no_type():
  """Two caches of one model would refuse each other for nothing."""
  with pytest.raises(ValueError, match="page_dtype is 'int8'; no branch keeps"):
    preset("mamba2_tiny", page_dtype="int8")
  assert preset("falcon_h1_tiny", page_dtype="int8").numerics.page_dtype


def test_fields_of_both_kinds_are_replaced_in_their_places():
  config = preset("tiny").replace(vocab_size=64, chunk=128, ladder=(1,))
  assert (config.vocab_size, config.numerics.chunk) == (64, 128)
  assert config.branches is preset("tiny").branches
  other = config.replace(numerics=Numerics(ladder=(2,)), head_rows=8)
  assert other.numerics == Numerics(ladder=(2,), head_rows=8)


def test_differences_are_named_where_they_are():
  given, known = tiny_config(value_heads=2, dtype="bfloat16"), tiny_config()
  assert list(differences(given, known)) == [
    ("branches[0].sub.value_heads", 2, 4),
    ("numerics.dtype", "bfloat16", "float32"),
  ]
  fewer = tiny_config(layer_types=("attention",))
  ((path, *_),) = differences(fewer, known)
  assert path == "branches"


def test_all_choices_are_ready_for_json():
  found = json.loads(json.dumps(preset("tiny").to_json()))
  kinds = [branch["sub"]["kind"] for branch in found["branches"]]
  assert kinds == ["gated_delta_net", "swiglu", "attention", "swiglu"]
  assert found["branches"][0]["sub"]["key_heads"] == TINY["key_heads"]
  assert found["numerics"]["ladder"] == [1, 2, 4]
