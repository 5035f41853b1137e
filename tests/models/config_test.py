"""Every choice that cannot work is refused, naming its field."""

import dataclasses
import math

import jaxtyping
import pytest

from sparse_prefix_jax import ModelConfig, preset
from sparse_prefix_jax.layers.rotary import RopeScaling

COUNTS = [
  field.name
  for field in dataclasses.fields(ModelConfig)
  if field.type in (int, "int")
]


@pytest.fixture
def unchecked():
  """As outside the tests: no annotation is checked before our own checks."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name, value):
  with pytest.raises(ValueError, match=f"^{name} is {value}; .* at least"):
    preset("tiny", **{name: value})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"decode_rows": 1}, "decode_rows is 1; it must be at least 2"),
    ({"head_rows": 1}, "head_rows is 1; it must be at least 2"),
    ({"window": 1}, "window is 1; it must be at least 2"),
    ({"value_heads": 3}, "value_heads is 3; .* multiple of key_heads = 2"),
    ({"heads": 5}, "heads is 5; .* multiple of kv_heads = 2"),
    ({"rotary_width": 15}, "rotary_width is 15; it must be even"),
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
    ({"rope_theta": 10**400}, "rope_theta is 10*; .* finite number above 0"),
    ({"rope_scaling": {"kind": "yarn"}}, "rope_scaling .* None or a RopeScal"),
    (
      {"rope_scaling": RopeScaling(kind="yarn", factor=2.0), "rope_theta": 1.0},
      "rope_theta is 1.0; with yarn it must be above 1",
    ),
    ({"end_ids": [1]}, r"end_ids is \[1\]; it must be a tuple"),
    ({"end_ids": (-1,)}, r"end_ids is \(-1,\); it must hold token ids"),
    ({"end_ids": (True,)}, r"end_ids is \(True,\); it must hold token ids"),
    ({"tie_embeddings": "no"}, "tie_embeddings is 'no'; .* True or False"),
    ({"dtype": 32}, "dtype is 32; it must be a string"),
    ({"layer_types": ["attention"]}, "layer_types is .*; it must be a tuple"),
    ({"layer_types": "attention"}, "layer_types is .*; it must be a tuple"),
    ({"ladder": [1]}, r"ladder is \[1\]; it must be a tuple"),
    ({"ladder": (1.0,)}, r"ladder is \(1\.0,\); .* ascending ints"),
    ({"ladder": (True,)}, r"ladder is \(True,\); .* ascending ints"),
    ({"ladder": ("1",)}, r"ladder is \('1',\); .* ascending ints"),
    ({"width": 96}, "width is 96; .* multiple of 64 wide"),
    ({"hidden": 100}, "hidden is 100; .* multiple of 64 wide"),
    ({"key_width": 16}, r"key_heads \* key_width is 32; .* single rung"),
    ({"value_width": 24}, r"value_heads \* value_width is 96; .* single rung"),
    ({"head_width": 16}, r"kv_heads \* head_width is 32; .* single rung"),
  ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_breaks_a_rule_is_refused_in_one_sentence(changes, message):
  with pytest.raises(ValueError, match=message) as refused:
    preset("tiny", **changes)
  assert str(refused.value).endswith(".")
  assert "\n" not in str(refused.value)


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
  config = preset("tiny", **changes)
  assert {name: getattr(config, name) for name in changes} == changes


def test_equal_configurations_are_one_static_argument():
  assert hash(preset("tiny")) == hash(preset("tiny"))
  assert preset("tiny") == preset("tiny")
  assert preset("tiny") != preset("tiny", eps=1e-5)
  with pytest.raises(dataclasses.FrozenInstanceError):
    preset("tiny").width = 128


def test_layers_get_their_share_of_the_choices():
  config = preset("qwen3_5_0_8b_group", eps=1e-5, dtype="bfloat16")
  net, attention = config.gated_delta_net, config.attention
  assert (net.width, net.key_heads, net.value_heads) == (1024, 16, 16)
  assert (net.key_width, net.value_width, net.window) == (128, 128, 4)
  assert net.mixed_width == 3 * 2048
  assert (attention.width, attention.heads, attention.kv_heads) == (1024, 8, 2)
  assert (attention.head_width, attention.rotary_width) == (256, 64)
  assert attention.theta == 1e7
  for part in (net, attention):
    assert (part.eps, part.dtype, part.precision) == (
      1e-5,
      "bfloat16",
      "highest",
    )
