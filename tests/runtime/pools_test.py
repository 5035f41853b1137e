"""Capacity split between slots and pages; copies of bits."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.layers import PagePools
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.runtime.pools import copy_sequence, split_capacity
from tests.models_for_tests import small_config

HYBRID = preset("tiny")
RECURRENT = preset("tiny", layer_types=("gated_delta_net",))
ATTENTION = preset("tiny", layer_types=("attention",))


@hypothesis.given(
  config=st.sampled_from([HYBRID, RECURRENT, ATTENTION]),
  capacity=st.integers(0, 1 << 26),
  share=st.floats(0.01, 0.99),
)
def test_never_more_than_the_capacity_and_little_less(config, capacity, share):
  slots, pages = split_capacity(config, capacity, share)
  slot, page = state_bytes(config), page_bytes(config)
  held = slots * slot + pages * page
  assert slots >= 0
  assert pages >= 0
  assert held <= capacity
  assert capacity - held < max(slot, page)
  if config is HYBRID:
    assert slots * slot <= capacity * share < (slots + 1) * slot


def test_a_model_without_attention_has_pages_for_every_slot():
  slots, pages = split_capacity(RECURRENT, 10 * state_bytes(RECURRENT), 0.5)
  assert slots == 10
  assert pages == 10 * 4096 // 64


def test_a_model_without_states_has_slots_for_a_sequence():
  slots, pages = split_capacity(ATTENTION, 10 * page_bytes(ATTENTION), 0.5)
  assert pages == 10
  assert slots == 10


@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("config", [HYBRID, RECURRENT, ATTENTION])
def test_too_little_holds_no_state_or_page(config, capacity):
  slots, pages = split_capacity(config, capacity, 0.5)
  sizes = [(slots, state_bytes(config)), (pages, page_bytes(config))]
  assert all(count == 0 for count, size in sizes if size)


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
  for old, new in zip(before, after, strict=True):
    kind = "pages" if isinstance(old, PagePools) else "slots"
    for x, y in zip(old, new, strict=True):
      assert np.asarray(y).tobytes() == x[sources[kind]].tobytes()


def test_copies_nothing_onto_itself():
  """What a fork without a partial page asks for: page 0 to page 0."""
  before = jax.tree.map(np.asarray, poisoned())
  same = np.array([1, 2], np.int32)
  after = copy_sequence(poisoned(), (same, same), (np.int32(0), np.int32(0)))
  for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    assert np.asarray(y).tobytes() == x.tobytes()


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
