"""Published models: how large they are, and what the page says of them."""

import collections
import dataclasses
import functools
import math
import pathlib

import jax
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, page_bytes, preset, state_bytes
from sparse_prefix_jax.models.families import FAMILIES
from sparse_prefix_jax.models.published import PUBLISHED
from tests.models.golden_cases import TINY

PAGE = pathlib.Path(__file__).parents[2] / "docs/how-to/checkpoints.md"


def test_the_page_says_what_a_state_costs():
  """The rows of the page are those that the configurations make."""
  text, known = PAGE.read_text("utf-8"), []
  for name in PUBLISHED:
    if name in TINY:
      continue
    config = preset(name)
    state, page = state_bytes(config), page_bytes(config)
    assert config.numerics.dtype == "bfloat16"
    tokens = "-"
    if page:
      tokens = f"{state / (page / config.numerics.chunk):,.0f}"
    size = f"{state / 2**20:.{0 if state > 2**20 else 1}f}"
    known.append(f"| `{name}` | {size} | {tokens} |")
  rows = [line for line in text.splitlines() if line.startswith("| `")]
  assert [row for row in rows if row.split("`")[1] in PUBLISHED] == known


def test_the_page_lists_every_model_type():
  text = PAGE.read_text("utf-8")
  for name in (name for family in FAMILIES for name in family.model_types):
    assert f"`{name}`" in text


@pytest.mark.parametrize(
  ("name", "parameters"),
  [
    ("qwen3_6_35b_a3b", 35e9),
    ("qwen3_5_397b_a17b", 397e9),
    ("qwen3_next_80b_a3b", 80e9),
    ("mamba2_2_7b", 2.7e9),
    ("granite_4_h_micro", 3.2e9),
    ("granite_4_h_tiny", 6.9e9),
    ("granite_4_h_small", 32.2e9),
    ("bamba_9b", 9.78e9),
    ("nemotron_h_8b", 8.1e9),
    ("nemotron_3_nano_30b_a3b", 31.6e9),
    ("falcon_h1_0_5b", 0.52e9),
    ("olmo_hybrid_7b", 7.4e9),
    ("mamba1_2_8b", 2.8e9),
    ("falcon_mamba_7b", 7.3e9),
    ("jamba_52b_a12b", 51.6e9),
    ("recurrent_gemma_2b", 2.7e9),
    ("lfm2_1_2b", 1.17e9),
    ("minimax_text_01", 456e9),
    ("kimi_linear_48b_a3b", 49.1e9),
  ],
)
def test_published_sizes_have_the_parameters_of_their_names(name, parameters):
  config = preset(name)
  ends = dataclasses.replace(config, branches=config.branches[:1])
  found = size_of(lambda: HybridDecoder(ends, rngs=nnx.Rngs(0)))
  for branch, times in collections.Counter(config.branches[1:]).items():
    layer = functools.partial(branch.make, config.width, config.numerics)
    found += times * size_of(lambda layer=layer: layer(rngs=nnx.Rngs(0)))
  assert abs(found / parameters - 1) < 0.03


def size_of(make):
  """How many numbers a module has; its arrays are never made."""
  leaves = jax.tree.leaves(nnx.eval_shape(make))
  return sum(math.prod(leaf.shape) for leaf in leaves)
