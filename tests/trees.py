"""Trees compared bit by bit, with the path of whatever differs."""

import chex
import jax
import numpy as np


def _as_integers(tree):
  """Every leaf as integers of its width, which hold its bits."""

  def integers(leaf):
    array = np.asarray(leaf)
    return array.view(f"u{array.dtype.itemsize}")

  return jax.tree.map(integers, tree)


def assert_same_bits(found, expected):
  """Equal in structure, shapes, dtypes and bits: -0.0 is not 0.0, NaN is NaN.

  chex compares values, to which zeros of both signs are equal.
  """
  chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
  chex.assert_trees_all_equal(_as_integers(found), _as_integers(expected))
