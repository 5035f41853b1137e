"""The wide product: one row count per program, a barrier on both sides."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from sparse_prefix_jax.kernels.implementations import current_device


def dense(
  x: Float[Array, "*rows i"],
  weight: Float[Array, "i o"],
  precision: str,
  *,
  bias: nnx.Param[Array] | None = None,
) -> Float[Array, "*rows o"]:
  """Multiplies all rows by a weight at once, accumulated in float32.

  The rows of a wide product do not depend on how many rows there are, from two
  up, provided that nothing is fused into it: hence the barriers.

  Args:
    x: Activations; the leading axes are rows.
    weight: Widths are multiples of 64 where several row counts are in use.
    precision: The precision of the product, as `jax.lax.Precision` names it.
    bias: What is added to every row before it is rounded; None adds nothing.

  Returns:
    The product in the dtype of x.
  """
  rows = lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
  # A GPU adds in float32 too and rounds where it adds: one kernel, not two.
  at_once = bias is None and current_device().platform == "gpu"
  with jax.named_scope("projection"):
    y = jnp.matmul(
      rows,
      weight,
      precision=precision,
      preferred_element_type=x.dtype if at_once else jnp.float32,
    )
  if bias is not None:
    y = lax.optimization_barrier(y) + bias[...].astype(jnp.float32)[None]
  y = lax.optimization_barrier(y.astype(x.dtype))
  return y.reshape(*x.shape[:-1], weight.shape[-1])


def kernel(
  rngs: nnx.Rngs, inputs: int, outputs: int, dtype: str
) -> nnx.Param[Array]:
  """Makes a weight [inputs, outputs], normal with variance 1 / inputs."""
  init = nnx.initializers.lecun_normal()
  return nnx.Param(init(rngs.params(), (inputs, outputs), jnp.dtype(dtype)))


def bias_row(has: bool, columns: int, dtype: str) -> nnx.Param[Array] | None:
  """Makes a bias of zeros, or None where a product has none."""
  return nnx.Param(jnp.zeros(columns, jnp.dtype(dtype))) if has else None


def added_row(bias: nnx.Param[Array] | None) -> Array:
  """A bias as a row in float32, to add; zero where there is none."""
  if bias is None:
    return jnp.zeros((1, 1), jnp.float32)
  return bias[...].astype(jnp.float32)[None]
