"""Slots and pages to the host and back: every bit, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.models.decoder import map_pools
from sparse_prefix_jax.runtime.host_copies import copy_back, copy_to_host
from sparse_prefix_jax.runtime.pools import allocate
from tests.models_for_tests import small_model
from tests.trees import assert_same_bits


def poisoned():
  """Random pools of 6 slots and 5 pages, with NaN, -0.0 and infinities."""
  random = np.random.default_rng(0)

  def fill(pool):
    values = random.standard_normal(pool.size, np.float32)
    values[[0, 40, 80]] = np.nan, -0.0, np.inf
    return jnp.asarray(values.reshape(pool.shape))

  return jax.tree.map(fill, allocate(small_model(), slots=6, pages=5))


def test_slots_and_pages_come_back_bit_by_bit_elsewhere():
  before = jax.tree.map(np.asarray, poisoned())
  copy = copy_to_host(poisoned(), [0, 4], [0, 3, 2])
  (after,) = copy_back(poisoned(), copy, [5, 1], [4, 1, 2])
  sources = {"slots": [0, 4, 2, 3, 4, 0], "pages": [0, 3, 2, 3, 0]}
  expected = map_pools(
    before, lambda x: x[sources["slots"]], lambda x: x[sources["pages"]]
  )
  assert_same_bits(after, expected)


def test_more_than_one_program_takes():
  """Nine times the same page, and slots in the first batch only."""
  copy = copy_to_host(poisoned(), [2, 1], [3] * 9)
  assert len(copy.parts) == 2
  *_, after = copy_back(poisoned(), copy, [0, 1], [0] * 8 + [1])
  before = jax.tree.map(np.asarray, poisoned())
  expected = map_pools(
    before, lambda x: x[[2, 1, 2, 3, 4, 5]], lambda x: x[[3, 3, 2, 3, 4]]
  )
  assert_same_bits(after, expected)


def test_a_copy_of_another_size_is_refused():
  copy = copy_to_host(poisoned(), [0, 1], [])
  with pytest.raises(ValueError, match="2 slots and 0 pages; 2 and 1 are"):
    list(copy_back(poisoned(), copy, [0, 1], [2]))
