"""row_products: rows of a step times several weights, in one pass over them."""

from collections.abc import Sequence

from jax import lax
from jaxtyping import Array, Float

from sparse_prefix_jax.kernels.checks import (
  as_precision,
  check_axes,
  check_floating,
)
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.row_products import mosaic_gpu, xla

IMPLEMENTATIONS = (mosaic_gpu.IMPLEMENTATION, plain(xla.multiply))


def row_products(
  x: Float[Array, "b i"],
  weights: Sequence[Float[Array, "_ i"]],
  *,
  precision: str | lax.Precision | None = None,
  implementation: Choice = None,
) -> tuple[Float[Array, "b _"], ...]:
  """Multiplies the rows of a step by weights, added up in float32.

  A row of a result depends on that row of x alone, and on how many rows there
  are. Weights of one input share a launch where a kernel takes them; the shapes
  of all of them may be in the bits of each. Through a kernel goes a gradient,
  but neither `vmap` nor forward mode.

  Args:
    x: The rows, one for each running sequence.
    weights: A row for each output, all of the dtype of x.
    precision: Of XLA's products; those of bfloat16 are exact.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    x W^T for every weight, in the dtype of x.

  Raises:
    ValueError: If there is no weight, if x is of integers, if shapes or dtypes
      do not belong together, or if no implementation fits, with the reason of
      each.

  Example:
    >>> import jax.numpy as jnp
    >>> one, two = jnp.eye(2), jnp.ones((1, 2))
    >>> [y.tolist() for y in row_products(jnp.array([[1.0, 2.0]]), [one, two])]
    [[[1.0, 2.0]], [[3.0]]]
  """
  several = isinstance(weights, Sequence)
  if not several or not len(weights):
    other = "an array" if hasattr(weights, "ndim") else repr(type(weights))
    raise ValueError(
      "row_products takes a sequence of weights, one or more, and got "
      f"{'none' if several else other}."
    )
  check_axes("row_products", x=(x, "b i"))
  check_floating("row_products", x=x)
  for index, weight in enumerate(weights):
    name = f"weights[{index}]"
    check_axes("row_products", x=(x, "b i"), **{name: (weight, "o i")})
    if weight.dtype != x.dtype:
      raise ValueError(
        f"{name} of row_products is of {weight.dtype}, and x of {x.dtype}; "
        "they must be of one dtype."
      )
  return tuple(
    dispatch(
      "row_products",
      implementation,
      IMPLEMENTATIONS,
      x,
      *weights,
      precision=as_precision("row_products", precision),
    )
  )
