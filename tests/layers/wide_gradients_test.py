"""Gradients of many terms in bfloat16 are sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sparse_prefix_jax.layers import Numerics, SwiGLUConfig


def test_cells_of_many_groups_are_summed_in_float32():
  """Equal rows: the mean of all is the mean of a group, whatever their number.

  A sum in bfloat16 stays where it is once a term is 1 / 256 of it.
  """
  numerics = Numerics(dtype="bfloat16", max_length=64)
  layer = SwiGLUConfig(hidden=16).make(16, numerics, rngs=nnx.Rngs(0))
  row = jnp.asarray(np.random.default_rng(0).standard_normal(16), jnp.bfloat16)

  @jax.jit
  def mean_gradient(x):
    def loss(layer):
      carry = layer.initialize_carry(x.shape, capacity=64)
      return layer.cell(carry, x)[1].astype(jnp.float32).sum()

    gradient = jax.tree.leaves(jax.grad(loss)(layer))
    return [
      np.float32(len(x)) ** -1 * leaf.astype("float32") for leaf in gradient
    ]

  few, many = (
    mean_gradient(jnp.tile(row, (numerics.decode_rows * n, 1)))
    for n in (1, 2048)
  )
  for one, other in zip(few, many, strict=True):
    np.testing.assert_array_equal(one, other)
