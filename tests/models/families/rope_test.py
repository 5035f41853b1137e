"""Descriptions of rotary embeddings, read and computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.layers.rotary import RopeScaling, rotate
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import read_rope
from tests.models import float64_model

YARN = {
  "rope_type": "yarn",
  "factor": 4.0,
  "original_max_position_embeddings": 64,
}
FULL = {"rope_theta": 1e4, "partial_rotary_factor": 1.0}


def read(text, width=32):
  return read_rope(Fields(text, "config.json"), width, 0.25)


def assert_refused(text, message):
  with pytest.raises(ValueError, match=message) as caught:
    read(text)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "rope",
  [
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 0.5},
    YARN,
    YARN | {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
    YARN | {"beta_fast": 4, "beta_slow": 0.25, "truncate": False},
    YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    YARN | {"attention_factor": 0.75},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    YARN | {"mscale": 0.7},
    YARN | {"factor": None},
    YARN | {"factor": 0.5},
    {"rope_type": "yarn", "factor": 4.0},
  ],
)
def test_angles_are_those_of_the_formula(rope):
  text = {"rope_parameters": FULL | rope, "max_position_embeddings": 512}
  width, theta, scaling, _ = read(text)
  frequency, factor = float64_model.frequencies(text, 32)
  x = jax.random.normal(jax.random.key(0), (5, 2, 32))
  position = np.array([0, 1, 63, 64, 500], np.int32)
  got = rotate(x, jnp.asarray(position), width, theta, scaling)
  angle, half = np.outer(position, frequency)[:, None], width // 2
  first, second = np.asarray(x[..., :half]), np.asarray(x[..., half:width])
  cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
  expected = (first * cos - second * sin, second * cos + first * sin)
  expected = np.concatenate([*expected, x[..., width:]], axis=-1)
  np.testing.assert_allclose(got, expected, atol=2e-4)


def test_yarn_leaves_fast_channels_and_divides_slow_ones():
  plain, _ = float64_model.frequencies({"rope_parameters": FULL}, 32)
  text = {"rope_parameters": FULL | YARN | {"factor": 8.0}}
  scaled, factor = float64_model.frequencies(text, 32)
  assert scaled[0] == plain[0]
  assert scaled[-1] == pytest.approx(plain[-1] / 8)
  assert factor == pytest.approx(1.2079, abs=1e-4)


def test_old_files_and_new_ones_say_the_same():
  scaling = {"factor": 4.0, "original_max_position_embeddings": 64}
  old = read({"rope_scaling": scaling | {"type": "yarn"}} | FULL)
  new = read({"rope_parameters": scaling | FULL | {"rope_type": "yarn"}})
  outer = {"original_max_position_embeddings": 64} | FULL
  assert old == new
  bare = {"rope_scaling": {"type": "yarn", "factor": 4.0}}
  assert read(bare | outer) == new
  assert new.scaling is not None and new.scaling.original_length == 64


def test_mrope_is_plain_on_text():
  section = {"mrope_section": [11, 11, 10], "mrope_interleaved": True}
  plain = read(FULL)
  assert plain.scaling is None
  assert read({"rope_scaling": section | {"type": "mrope"}} | FULL) == plain
  both = {"rope_type": "default", "type": "mrope"}
  assert read({"rope_parameters": FULL | section | both}) == plain


def test_yarn_makes_the_context_longer():
  context = {"max_position_embeddings": 64}
  assert read({"rope_parameters": FULL} | context).length == 64
  assert read({"rope_parameters": FULL | YARN} | context).length == 256
  assert read({"rope_parameters": FULL | YARN}).length == 256
  longer = {"max_position_embeddings": 1024}
  assert read({"rope_parameters": FULL | YARN} | longer).length == 1024


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_angles_that_depend_on_the_total_length_are_refused(kind):
  assert_refused(
    {"rope_scaling": {"type": kind, "factor": 2.0}}, "the total length"
  )
  assert_refused(
    {"rope_parameters": {"rope_type": kind}}, f"is '{kind}'; an angle"
  )


@pytest.mark.parametrize(
  ("rope", "message"),
  [
    ({"rope_type": "llama3"}, "rope_type in .* is 'llama3'; .* linear, yarn"),
    ({"rope_type": 3}, "rope_type in .* is 3; it must be one of"),
    ({"rope_type": "linear"}, "rope_parameters in config.json lacks factor"),
    ({"rope_type": "linear", "factor": "2"}, "factor in .* is '2'; .* number"),
    ({"rope_type": "linear", "factor": 0}, "factor in .* is 0; .* above 0"),
    ({"rope_type": "linear", "factor": 10**400}, "factor in .* at most 1e.06"),
    (YARN | {"rope_theta": 1.0}, "rope_theta in .* is 1.0; with yarn"),
    (YARN | {"rope_theta": 0.5}, "rope_theta in .* is 0.5; .* at least 1"),
    (YARN | {"beta_fast": -1}, "beta_fast in .* is -1; .* above 0"),
    (YARN | {"truncate": 1}, "truncate in .* is 1; it must be true or false"),
    (YARN | {"attention_factor": 1e9}, "attention_factor .* at most 1000"),
    (YARN | {"mscale": "1"}, "mscale in .* is '1'; .* number"),
    ({"factor": 4.0}, "factor in rope_parameters .* is 4.0; this key is not"),
    ({"full_attention": {"rope_theta": 1}}, "full_attention in .* not known"),
    ({"partial_rotary_factor": 2}, "partial_rotary_factor .* at most 1"),
    (
      {"rope_type": "yarn", "type": "linear", "factor": 2.0},
      "rope_type in .* is 'yarn'; type is 'linear'",
    ),
  ],
)
def test_what_is_wrong_is_said_in_one_sentence(rope, message):
  assert_refused({"rope_parameters": rope}, message)


def test_two_objects_that_differ_are_refused():
  old = {"rope_scaling": {"type": "default"}, "rope_theta": 1e4}
  same = old | {"rope_parameters": {"rope_theta": 1e4}}
  assert read(same) == read(old)
  differ = old | {"rope_parameters": {"rope_theta": 1e6}}
  assert_refused(
    differ, "rope_scaling and rope_parameters in config.json differ"
  )
  outer = {"original_max_position_embeddings": 32, "rope_parameters": YARN}
  assert_refused(
    outer, "original_max_position_embeddings .* is 64; another one"
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kind": "ntk"}, "kind is 'ntk'; .* one of linear, yarn"),
    ({"truncate": "no"}, "truncate is 'no'; it must be True or False"),
    ({"original_length": 100.5}, "original_length is 100.5; .* an int"),
    (
      {"beta_fast": 1.0, "beta_slow": 32.0},
      "beta_fast is 1.0; it must be at least beta_slow = 32.0",
    ),
    ({"factor": 0.0}, "factor is 0.0; it must be a finite number above 0"),
    ({"beta_fast": float("inf")}, "beta_fast is inf; .* finite"),
    ({"attention_factor": float("nan")}, "attention_factor is nan; .* finite"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_a_scaling_that_makes_no_angles_is_refused(changes, message):
  fields = {"kind": "yarn", "factor": 2.0} | changes
  with pytest.raises(ValueError, match=message):
    RopeScaling(**fields)
