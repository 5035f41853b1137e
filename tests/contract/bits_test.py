"""Counting differing bits, filling what is free."""

import jax
import numpy as np
import pytest

from sparse_prefix_jax import PrefixCache, prefill
from sparse_prefix_jax.contract import differing_bits, poison
from tests.models_for_tests import last_placement, small_model


def test_differing_bits_counts_bits():
  x = np.array([0.0, 1.0], np.float32)
  assert differing_bits(x, x) == 0
  assert differing_bits(x, np.array([-0.0, 1.0], np.float32)) == 1
  with pytest.raises(ValueError, match="must agree"):
    differing_bits(x, x.astype(np.float64))


def test_poison_fills_all_that_is_free_and_nothing_else():
  cache = PrefixCache(
    small_model(), capacity=1 << 19, placement=last_placement()
  )
  prompt = np.arange(40, dtype=np.int32)
  prefill(small_model(), cache, [prompt], capture=[[16, 32]])
  before = [np.asarray(leaf) for leaf in jax.tree.leaves(cache.pools)]
  poison(cache)
  unheld = cache.store.index.unheld()
  for old, new in zip(before, jax.tree.leaves(cache.pools), strict=True):
    slots = new.shape[0] == cache.store.index.budget.slots
    free = list(unheld.slots if slots else unheld.pages)
    held = sorted(set(range(new.shape[0])) - set(free))
    assert np.isnan(np.asarray(new)[free]).all()
    assert differing_bits(np.asarray(new)[held], old[held]) == 0
    assert len(held) == (4 if slots else 3)
