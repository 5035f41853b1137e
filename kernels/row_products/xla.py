"""row_products as products of XLA, one for each weight."""

from collections.abc import Sequence

from jax import lax
from jaxtyping import Array, Float

from sparse_prefix_jax.kernels.barrier import barrier


def multiply(
  x: Float[Array, "b i"],
  *weights: Float[Array, "_ i"],
  precision: lax.Precision,
) -> Sequence[Array]:
  """Multiplies, and rounds where products are added up.

  Args:
    x: Rows.
    *weights: A row for each output.
    precision: Of the products.
  """
  return tuple(
    barrier(
      lax.dot_general(
        x,
        weight,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=x.dtype,
      )
    )
    for weight in weights
  )
