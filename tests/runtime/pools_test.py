"""Capacity split between slots and pages; copies of bits."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sparse_prefix_jax import HybridDecoder
from sparse_prefix_jax.models.decoder import map_pools
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.runtime.pools import copy_sequence
from tests.models_for_tests import small_config
from tests.trees import assert_same_bits


def shapes_of_pools(**sizes):
  model = nnx.eval_shape(
    lambda: HybridDecoder(small_config(), rngs=nnx.Rngs(0))
  )
  return jax.eval_shape(lambda: model.init_pools(**sizes))


def poisoned():
  """Random pools with NaN, -0.0 and infinities among the copied."""
  random = np.random.default_rng(0)

  def fill(pool):
    values = random.standard_normal(pool.size, np.float32)
    values[[0, 40, 80]] = np.nan, -0.0, np.inf
    return jnp.asarray(values.reshape(pool.shape))

  return jax.tree.map(fill, shapes_of_pools(slots=6, pages=5))


def test_copies_slots_and_one_page_bit_by_bit():
  before = jax.tree.map(np.asarray, poisoned())
  slots = np.array([0, 4], np.int32), np.array([5, 2], np.int32)
  after = copy_sequence(poisoned(), slots, (np.int32(0), np.int32(3)))
  sources = {"slots": [0, 1, 4, 3, 4, 0], "pages": [0, 1, 2, 0, 4]}
  expected = map_pools(
    before, lambda x: x[sources["slots"]], lambda x: x[sources["pages"]]
  )
  assert_same_bits(after, expected)


def test_copies_nothing_onto_itself():
  """What a fork without a partial page asks for: page 0 to page 0."""
  before = jax.tree.map(np.asarray, poisoned())
  same = np.array([1, 2], np.int32)
  after = copy_sequence(poisoned(), (same, same), (np.int32(0), np.int32(0)))
  assert_same_bits(after, before)


def test_copying_works_in_place():
  pools = shapes_of_pools(slots=64, pages=64)
  total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pools))
  pair, one = np.zeros(2, np.int32), np.int32(0)
  compiled = copy_sequence.lower(pools, (pair, pair), (one, one)).compile()
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes == total
  config = small_config()
  copied = 2 * state_bytes(config) + page_bytes(config)
  assert memory.temp_size_in_bytes <= 2 * copied
