"""Gradients that are sums of many terms, added in float32.

In bfloat16 a sum stops growing once it is 256 times its next term, so the
weights of a long document would get the gradient of a part of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def wide_zeros(weights: Any) -> Any:
  """Sums of nothing yet: float32, whatever the weights are.

  Args:
    weights: A tree of arrays.
  """
  return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), weights)


def added_wide(sums: Any, gradient: Any) -> Any:
  """Returns the sums with one more term.

  Args:
    sums: Of `wide_zeros`.
    gradient: A tree of that form, in any type.
  """
  return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, gradient)


def rounded_once(sums: Any, weights: Any) -> Any:
  """Returns the sums in the types of the weights.

  Args:
    sums: A tree of arrays.
    weights: What has its form, and the types.
  """
  return jax.tree.map(lambda s, like: s.astype(like.dtype), sums, weights)


@jax.custom_vjp
def graded_wide(weights: Any, sums: Any) -> Any:
  """Returns the weights; what would be their gradient is that of the sums.

  A loop adds up gradients of what it closes over in the type of that, and the
  values of the sums are never read.

  Args:
    weights: A tree of arrays; they get no gradient.
    sums: Of `wide_zeros`.

  Example:
    >>> weight, zero = jnp.ones((), jnp.bfloat16), jnp.zeros(())
    >>> jax.grad(lambda sums: 3 * graded_wide(weight, sums))(zero).dtype.name
    'float32'
  """
  del sums
  return weights


def _widened(_: None, gradient: Any) -> tuple[None, Any]:
  """The gradient as that of the sums."""
  return None, jax.tree.map(lambda x: x.astype(jnp.float32), gradient)


graded_wide.defvjp(lambda weights, _: (weights, None), _widened)


def looked_up(
  embedding: Float[Array, "v d"], ids: Int32[Array, "*rows"]
) -> Float[Array, "*rows d"]:
  """Rows of a table; the gradient of a row is the sum over all its uses.

  Args:
    embedding: The table.
    ids: Which rows, in its range.

  Example:
    >>> table, ids = jnp.ones((2, 1), jnp.bfloat16), jnp.zeros(1000, jnp.int32)
    >>> used = jax.grad(lambda table: looked_up(table, ids).sum())(table)
    >>> used.tolist()
    [[1000.0], [0.0]]
  """
  shape, dtype = embedding.shape, embedding.dtype

  @jax.custom_vjp
  def rows(embedding: Array, ids: Array) -> Array:
    return embedding[ids]

  def forward(embedding: Array, ids: Array) -> tuple[Array, Array]:
    return embedding[ids], ids

  def backward(ids: Array, d: Array) -> tuple[Array, None]:
    sums = jnp.zeros(shape, jnp.float32).at[ids].add(d.astype(jnp.float32))
    return sums.astype(dtype), None

  rows.defvjp(forward, backward)
  return rows(embedding, ids)
