"""Where the compiler may not see from one part of a program into the next."""

from typing import Any, TypeVar

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from sparse_prefix_jax.kernels.implementations import current_device

_Arrays = TypeVar("_Arrays")


def barrier(xs: _Arrays) -> _Arrays:
  """Returns arrays as they are; what is on either side compiles by itself.

  Bits of a row hang on how its part of a program is compiled, so a part that
  must have the same bits in every program stands between two barriers. Nothing
  is fused across one. On a GPU that is not enough: the order in which an array
  lies in memory is chosen for all who read it, barrier or not, and sums and
  products over another order are other kernels (measured: programs of one chunk
  had other bits than those of 16, since a single chunk is transposed for
  nothing). So there arrays at a barrier lie in the order of their axes.

  Args:
    xs: A tree of arrays.

  Example:
    >>> import jax.numpy as jnp
    >>> barrier((jnp.arange(2), None))[0].tolist()
    [0, 1]
  """
  if current_device().platform == "gpu":
    xs = jax.tree.map(_in_order_of_axes, xs)
  return lax.optimization_barrier(xs)


def _in_order_of_axes(x: Any) -> jax.Array:
  """The same, its last axis contiguous; one axis has no other order."""
  x = jax.numpy.asarray(x)
  if x.ndim < 2 or jax.numpy.issubdtype(x.dtype, jax.dtypes.extended):
    return x
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
