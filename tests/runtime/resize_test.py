"""Pools of another size: each array by what it is, in any branch."""

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.layers import BranchPools
from sparse_prefix_jax.runtime import in_place, resize
from sparse_prefix_jax.runtime.resize import moved_pools, resized_pools
from tests.trees import assert_same_bits


def pools():
  """A recurrent branch, a feed-forward one, a pair that keeps both."""
  random = np.random.default_rng(0)

  def array(*shape):
    return jnp.asarray(random.standard_normal(shape, np.float32))

  return (
    BranchPools(slots=(array(4, 3), array(4, 2))),
    BranchPools(),
    BranchPools(slots=(array(4, 5), ()), pages=((), {"keys": array(6, 2)})),
  )


def test_every_array_has_the_new_size_of_its_kind():
  before = jax.tree.map(np.asarray, pools())
  steps = list(resized_pools(pools(), slots=7, pages=3))
  assert len(steps) == 3  # slots, slots, pages; nothing of the empty branch
  rows = [leaf.shape[0] for leaf in jax.tree.leaves(steps[0])]
  assert rows == [4, 4, 4, 3]  # what shrinks gives its memory back first
  for leaf, old in zip(
    jax.tree.leaves(steps[-1]), jax.tree.leaves(before), strict=True
  ):
    paged = old.shape[0] == 6
    assert leaf.shape[0] == (3 if paged else 7)
    kept = min(leaf.shape[0], old.shape[0])
    assert_same_bits(leaf[:kept], old[:kept])
    assert not leaf[kept:].any()
  assert jax.tree.structure(steps[-1]) == jax.tree.structure(before)


def test_the_same_sizes_again_compile_nothing():
  """A server waits for every compilation of a move."""
  list(resized_pools(pools(), slots=7, pages=3))
  program = in_place._placing(resize._cut, None)
  compiled = program._cache_size()
  list(resized_pools(pools(), slots=7, pages=3))
  assert program._cache_size() == compiled > 0


def test_slots_and_pages_of_one_branch_are_moved_apart():
  before = jax.tree.map(np.asarray, pools())
  *_, after = moved_pools(pools(), {3: 0}, {5: 1, 4: 2})
  slots, pages = np.array([3, 1, 2, 3]), np.array([0, 5, 4, 3, 4, 5])
  expected = [
    kept.map(lambda x: x[slots], lambda x: x[pages]) for kept in before
  ]
  assert_same_bits(list(after), expected)
