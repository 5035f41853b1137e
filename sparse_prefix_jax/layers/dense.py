"""The wide product: one row count per program, a barrier on both sides."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.kernels.row_products import row_products
from sparse_prefix_jax.layers.choices import is_int
from sparse_prefix_jax.layers.numerics import Numerics

_FEW = 16
"""Rows of a step that one product takes on a CPU."""
_MOST_FEW = 64
"""More rows than that, as training gives to the head, are one product."""


def product(
  x: Float[Array, "rows i"],
  weight: Float[Array, "o i"],
  precision: str,
  result: DTypeLike = jnp.float32,
) -> Float[Array, "rows o"]:
  """Multiplies rows by a weight, accumulated in float32.

  Args:
    x: Activations.
    weight: A row for each output, as checkpoints store it.
    precision: The precision of the product, as `jax.lax.Precision` names it.
    result: The dtype of the result.
  """
  return lax.dot_general(
    x,
    weight,
    (((1,), (1,)), ((), ())),
    precision=precision,
    preferred_element_type=result,
  )


def product_of_few(
  rows: Float[Array, "b i"], weight: Float[Array, "o i"], precision: str
) -> Float32[Array, "b o"]:
  """Multiplies the rows of a step, or of the head, whose number is fixed.

  On a CPU the weight is the left operand, for at most 16 rows at a time: XLA
  reads it 1.3 to 1.6 times as fast so. With more rows, or from the right, it
  packs the weight anew for every step.

  Args:
    rows: Activations.
    weight: A row for each output.
    precision: The precision of the product, as `jax.lax.Precision` names it.
  """
  few = 0 < rows.shape[0] <= _MOST_FEW
  if not few or current_device().platform != "cpu":
    return product(rows, weight, precision)
  blocks = jnp.array_split(rows, -(-rows.shape[0] // _FEW))
  parts = [product(weight, block, precision) for block in blocks]
  # The transpose would be folded into the product, in the slowest order.
  return jnp.concatenate([x.T for x in barrier(parts)])


def dense(
  x: Float[Array, "*rows i"],
  weight: Float[Array, "o i"],
  numerics: Numerics,
  *,
  bias: nnx.Param[Array] | None = None,
) -> Float[Array, "*rows o"]:
  """Multiplies all rows by a weight at once, accumulated in float32.

  The rows of a wide product do not depend on how many rows there are, from two
  up, provided that nothing is fused into it: hence the barriers. A step of
  decoding, whose number of rows is fixed, has an order of its own on a CPU, and
  a kernel on a GPU.

  Args:
    x: Activations; the leading axes are rows: chunks [n c], or [b] of a step.
    weight: A row for each output. Widths are multiples of 64 where several row
      counts are in use.
    numerics: Of the model: the precision of the product, and what computes it.
    bias: What is added to every row before it is rounded; None adds nothing.

  Returns:
    The product in the dtype of x.

  Raises:
    ValueError: If numerics is something else.
  """
  _check_numerics(numerics)
  rows = barrier(x.reshape(-1, x.shape[-1]))
  on_gpu = bias is None and current_device().platform == "gpu"
  if on_gpu and _is_of_a_step(x, [weight]):
    return _of_a_step(rows, [weight], numerics)[0]
  multiply = product_of_few if x.ndim == 2 else product
  precision = numerics.precision
  with jax.named_scope("projection"):
    # A GPU adds in float32 too and rounds where it adds: one kernel, not two.
    if on_gpu:
      y = product(rows, weight, precision, result=x.dtype)
    else:
      y = multiply(rows, weight, precision)
  if bias is not None:
    y = barrier(y) + bias[...].astype(jnp.float32)[None]
  y = barrier(y.astype(x.dtype))
  return y.reshape(*x.shape[:-1], weight.shape[0])


def dense_each(
  x: Float[Array, "*rows i"],
  weights: Sequence[Float[Array, "_ i"]],
  numerics: Numerics,
  *,
  biases: Sequence[nnx.Param[Array] | None] = (),
) -> tuple[Float[Array, "*rows _"], ...]:
  """`dense` for several weights of one input.

  In a step on a GPU one kernel reads them all: small ones take about as long to
  begin and to end as to read. A product may have other bits there than alone:
  in how many ranges its inputs are added is said by all weights of a launch.

  Args:
    x: As in `dense`.
    weights: A row for each output; one or more.
    numerics: Of the model.
    biases: One for each weight, or none at all.

  Returns:
    The products, in the order of the weights.

  Raises:
    ValueError: If there is no weight, or another number of biases, or numerics
      is something else.
  """
  _check_numerics(numerics)
  if not len(weights):
    raise ValueError("dense_each has no weight; it takes one or more.")
  biases = biases or [None] * len(weights)
  if len(biases) != len(weights):
    raise ValueError(
      f"dense_each has {len(biases)} biases for {len(weights)} weights; it "
      "takes one for each (None adds nothing), or none."
    )
  plain = all(bias is None for bias in biases)
  on_gpu = plain and current_device().platform == "gpu"
  if on_gpu and _is_of_a_step(x, weights):
    return _of_a_step(barrier(x), weights, numerics)
  return tuple(
    dense(x, weight, numerics, bias=bias)
    for weight, bias in zip(weights, biases, strict=True)
  )


def _check_numerics(numerics: object) -> None:
  """Refuses a precision, which stood in its place."""
  if not isinstance(numerics, Numerics):
    raise ValueError(
      f"numerics is {numerics!r}; it must be the Numerics of the model."
    )


def _is_of_a_step(x: Array, weights: Sequence[Array]) -> bool:
  """Whether these are rows [b], and of the dtype of all weights."""
  return x.ndim == 2 and all(weight.dtype == x.dtype for weight in weights)


def _of_a_step(
  rows: Float[Array, "b i"], weights: Sequence[Array], numerics: Numerics
) -> tuple[Array, ...]:
  """Products of a step on a GPU, by XLA where it is forced or no kernel fits.

  There is no barrier behind them: a step has one number of rows, and the sum of
  a product's parts is one kernel with what is added to it.
  """
  xla = "xla" if numerics.implementation == "xla" else None
  with jax.named_scope("projection"):
    return row_products(
      rows, weights, precision=numerics.precision, implementation=xla
    )


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
  """Draws them; here a width that is none is found, whatever makes a layer."""
  for name, many in (("inputs", inputs), ("outputs", outputs)):
    if not is_int(many) or many < 1:
      raise ValueError(
        f"a weight has {many!r} {name}; it must be an int from 1."
      )
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
