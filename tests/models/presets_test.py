"""Presets: the sizes they promise."""

import math

import jax
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.layers import SwiGLUConfig
from sparse_prefix_jax.models import PRESETS, hybrid


def parameters(name):
  config = preset(name)
  model = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize(
  ("name", "least", "most"),
  [
    ("tiny", 1e5, 2e5),
    ("demo", 2e6, 5e6),
    ("recall", 6e5, 7e5),
    ("qwen3_5_0_8b_group", 83.4e6, 83.6e6),
    ("qwen3_5_0_8b", 0.74e9, 0.76e9),
  ],
)
def test_number_of_parameters(name, least, most):
  assert least <= parameters(name) <= most


def test_attention_of_recall_sees_64_tokens_beside_two_kinds_of_states():
  subs = [branch.sub for branch in preset("recall").branches[::2]]
  kinds = [sub.kind for sub in subs]
  assert kinds == ["mamba2", "attention", "gated_delta_net"]
  assert subs[1].attention_window == 64


def test_the_group_is_a_layer_group_of_the_model():
  group, model = preset("qwen3_5_0_8b_group"), preset("qwen3_5_0_8b")
  assert group.vocab_size == 512
  mixers = [branch.sub.kind for branch in group.branches[::2]]
  assert mixers == ["gated_delta_net"] * 3 + ["attention"]
  assert model.branches == 6 * group.branches
  assert model.replace(vocab_size=512, branches=group.branches) == group


@pytest.mark.parametrize("name", PRESETS)
def test_fields_can_be_replaced(name):
  changed = preset(name, max_length=1024)
  assert changed.numerics.max_length == 1024
  assert preset(name).numerics.max_length != 1024
  assert preset(name) == PRESETS[name]


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"^preset is 'huge'; .*") as refused:
    preset("huge")
  for name in PRESETS:
    assert name in str(refused.value)


def test_a_field_that_does_not_exist_is_refused_with_those_that_do():
  with pytest.raises(ValueError, match=r"^foo is 1, but no such .* width, "):
    preset("tiny", foo=1)


def test_feed_forward_layers_are_given_once_and_for_each_layer():
  sizes = {"vocab_size": 512, "width": 64, "layer_types": ("attention",)}
  given = (SwiGLUConfig(hidden=128),)
  assert hybrid(**sizes, hidden=128) == hybrid(**sizes, feed_forwards=given)
  for both in ({}, {"hidden": 128, "feed_forwards": given}):
    with pytest.raises(ValueError, match="one of them must be given"):
      hybrid(**sizes, **both)
  with pytest.raises(ValueError, match=r"holds 2 sublayers; .* of 1 layers"):
    hybrid(**sizes, feed_forwards=given * 2)
