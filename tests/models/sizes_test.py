"""Bytes per state and page are those of the arrays."""

import jax
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from tests.models_for_tests import tiny_config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny", "demo", "qwen3_5_0_8b_group"])
def test_bytes_are_those_of_the_pools(name, dtype):
  config = preset(name, dtype=dtype)

  def bytes_of(slots, pages):
    def pools():
      model = HybridDecoder(config, rngs=nnx.Rngs(0))
      return model.init_pools(slots=slots, pages=pages)

    leaves = jax.tree.leaves(jax.eval_shape(pools))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

  assert bytes_of(3, 0) == 3 * state_bytes(config)
  assert bytes_of(0, 5) == 5 * page_bytes(config)
  assert bytes_of(3, 5) == 3 * state_bytes(config) + 5 * page_bytes(config)


def test_a_model_without_a_kind_of_layer_keeps_nothing_for_it():
  recurrent = tiny_config(layer_types=("gated_delta_net",))
  attention = tiny_config(layer_types=("attention",))
  assert page_bytes(recurrent) == 0 < state_bytes(recurrent)
  assert state_bytes(attention) == 0 < page_bytes(attention)
