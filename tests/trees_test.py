"""The comparison that other tests trust, on what it must tell apart."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.trees import assert_same_bits

TREE = {"state": np.float32([0.0, np.nan]), "rows": [jnp.arange(3)]}


def test_equal_trees_are_equal_whatever_holds_them():
  assert_same_bits(TREE, TREE)
  assert_same_bits(jnp.bfloat16([1, 2]), np.asarray(jnp.bfloat16([1, 2])))
  assert_same_bits((), ())


@pytest.mark.parametrize(
  "other",
  [
    TREE | {"state": np.float32([-0.0, np.nan])},
    TREE | {"state": np.float32([0.0, -np.nan])},
    TREE | {"state": np.float32([[0.0, np.nan]])},
    TREE | {"rows": [jnp.arange(3.0)]},
    TREE | {"rows": []},
    {"state": TREE["state"]},
  ],
)
def test_one_bit_a_shape_a_dtype_or_a_leaf_is_a_difference(other):
  with pytest.raises((AssertionError, ValueError), match=r"\w"):
    assert_same_bits(TREE, other)
