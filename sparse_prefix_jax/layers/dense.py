"""The wide product: one row count per program, a barrier on both sides."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Float32


def product(
  x: Float[Array, "rows i"], weight: Float[Array, "o i"], precision: str
) -> Float32[Array, "rows o"]:
  """Multiplies rows by a weight, accumulated in float32.

  The weight is the left operand: few rows of a decode step take half the time
  on a CPU, and a row has the same bits with few and with many others, also at
  widths where the other order has two sets of bits.

  Args:
    x: Activations.
    weight: A row for each output, as checkpoints store it.
    precision: The precision of the product, as `jax.lax.Precision` names it.
  """
  columns = lax.dot_general(
    weight,
    x,
    (((1,), (1,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return columns.T


def dense(
  x: Float[Array, "*rows i"],
  weight: Float[Array, "o i"],
  precision: str,
  *,
  bias: nnx.Param[Array] | None = None,
) -> Float[Array, "*rows o"]:
  """Multiplies all rows by a weight at once, accumulated in float32.

  The rows of a wide product do not depend on how many rows there are, from two
  up, provided that nothing is fused into it: hence the barriers.

  Args:
    x: Activations; the leading axes are rows.
    weight: A row for each output. Widths are multiples of 64 where several row
      counts are in use.
    precision: The precision of the product, as `jax.lax.Precision` names it.
    bias: What is added to every row before it is rounded; None adds nothing.

  Returns:
    The product in the dtype of x.
  """
  rows = lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
  with jax.named_scope("projection"):
    y = product(rows, weight, precision)
  if bias is not None:
    y = lax.optimization_barrier(y) + bias[...].astype(jnp.float32)[None]
  y = lax.optimization_barrier(y.astype(x.dtype))
  return y.reshape(*x.shape[:-1], weight.shape[0])


def kernel(
  rngs: nnx.Rngs, inputs: int, outputs: int, dtype: str
) -> nnx.Param[Array]:
  """Makes a weight [outputs inputs], normal with variance 1 / inputs."""
  return nnx.Param(_normal(rngs, inputs, outputs, dtype).T)


def taps(
  rngs: nnx.Rngs, window: int, channels: int, dtype: str
) -> nnx.Param[Array]:
  """Makes a convolution [window channels], normal with variance 1 / window."""
  return nnx.Param(_normal(rngs, window, channels, dtype))


def _normal(rngs: nnx.Rngs, inputs: int, outputs: int, dtype: str) -> Array:
  init = nnx.initializers.lecun_normal()
  return init(rngs.params(), (inputs, outputs), jnp.dtype(dtype))


def bias_row(has: bool, columns: int, dtype: str) -> nnx.Param[Array] | None:
  """Makes a bias of zeros, or None where a product has none."""
  return nnx.Param(jnp.zeros(columns, jnp.dtype(dtype))) if has else None


def added_row(bias: nnx.Param[Array] | None) -> Array:
  """A bias as a row in float32, to add; zero where there is none."""
  if bias is None:
    return jnp.zeros((1, 1), jnp.float32)
  return bias[...].astype(jnp.float32)[None]
