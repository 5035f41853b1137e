"""Bytes per state and page are those of the arrays."""

import jax
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from tests.models_for_tests import tiny_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("page_dtype", [None, "int8"])
@pytest.mark.parametrize("name", ["tiny", "demo", "qwen3_5_0_8b_group"])
def test_bytes_are_those_of_the_pools(name, page_dtype, dtype):
  config = preset(name, dtype=dtype, page_dtype=page_dtype)

  def bytes_of(slots, pages):
    def pools():
      model = HybridDecoder(config, rngs=nnx.Rngs(0))
      return model.init_pools(slots=slots, pages=pages)

    leaves = jax.tree.leaves(jax.eval_shape(pools))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

  assert bytes_of(3, 0) == 3 * state_bytes(config)
  assert bytes_of(0, 5) == 5 * page_bytes(config)
  assert bytes_of(3, 5) == 3 * state_bytes(config) + 5 * page_bytes(config)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_page_in_int8_has_a_byte_for_each_number_and_two_scales_a_head(
  dtype, size
):
  config = preset("qwen3_5_0_8b", dtype=dtype)
  numbers, heads, layers = 64 * 256, 2, 6
  kept = 2 * layers * heads * numbers  # of keys and of values
  assert page_bytes(config) == size * kept
  quantised = config.replace(page_dtype="int8")
  assert page_bytes(quantised) == kept + 4 * 2 * layers * heads
  # A slot has room for the chunk that runs.
  assert state_bytes(quantised) == state_bytes(config) + size * kept


def test_a_model_without_a_kind_of_layer_keeps_nothing_for_it():
  recurrent = tiny_config(layer_types=("gated_delta_net",))
  attention = tiny_config(layer_types=("attention",))
  assert page_bytes(recurrent) == 0 < state_bytes(recurrent)
  assert state_bytes(attention) == 0 < page_bytes(attention)
