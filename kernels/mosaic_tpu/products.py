"""Products of matrices on a unit that multiplies bfloat16 numbers.

The matrix unit adds up in float32 what it multiplies in bfloat16, and a float32
matrix is the sum of bfloat16 parts: of the 24 bits of a number one has 8, two
have 16, three have all. At HIGHEST the compiler takes six passes of the unit
for a product, whatever stands in it. Where the inputs of an operation are
bfloat16 we take parts ourselves: an input is one, what is computed from inputs
two. So products of inputs are exact in one pass, those of an input and
something computed take two, and those of two things computed three: without
the product of the second parts, which is up to 2^-14 of the whole: parts are
cut off, not rounded, so that no first part of a large number is infinite.

Parts stand behind one another along the axis that is summed over, so a product
is one operation and its passes add up inside the unit; with 64 tokens two of
them fit into one pass.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

_UPPER = -(2**16)
"""A mask of the bits of a float32 number that a bfloat16 number has."""


def dot(
  x: Float[Array, "r1 c1"],
  y: Float[Array, "r2 c2"],
  precision: lax.Precision | None,
  contract: tuple[int, int] = (1, 0),
) -> Float32[Array, "r v"]:
  """Multiplies two matrices, adding in float32.

  Args:
    x: Float32; or bfloat16 like y, whose products are exact in one pass.
    y: The other factor.
    precision: HIGHEST takes six passes of the matrix unit for float32.
    contract: The axis of each that is summed over: (1, 0) is x y, (1, 1) is
      x y^T, (0, 0) is x^T y.
  """
  return lax.dot_general(
    x,
    y,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )


@dataclasses.dataclass(frozen=True)
class Products:
  """How an operation multiplies matrices.

  Attributes:
    precision: Precision that was asked for.
    split: Whether factors go in as bfloat16 parts.
  """

  precision: lax.Precision
  split: bool

  def exact(self, x: Float32[Array, "rows k"]) -> Float[Array, "rows k"]:
    """A factor that holds inputs as they came: if split, the only part."""
    return x.astype(jnp.bfloat16) if self.split else x

  def __call__(
    self,
    x: Float[Array, "r1 c1"],
    y: Float[Array, "r2 c2"],
    contract: tuple[int, int] = (1, 0),
  ) -> Float32[Array, "r v"]:
    """Multiplies two matrices, adding in float32.

    Args:
      x: Float32, or what `exact` made of it.
      y: The other factor.
      contract: The axis of each that is summed over, as `dot` has it.
    """
    if not self.split:
      return dot(x, y, self.precision, contract)
    (x0, *x1), (y0, *y1) = (_parts(z, 2) for z in (x, y))
    # x0 y0, x0 y1 and x1 y0, as far as there are second parts.
    xs = [x0, *(x0 for _ in y1), *x1]
    ys = [y0, *y1, *(y0 for _ in x1)]
    return dot(
      jnp.concatenate(xs, axis=contract[0]),
      jnp.concatenate(ys, axis=contract[1]),
      None,
      contract,
    )


def products_of(precision: lax.Precision, *inputs: Array) -> Products:
  """How an operation multiplies.

  Args:
    precision: Precision that was asked for.
    *inputs: The inputs that enter products, of any shapes.
  """
  narrow = all(x.dtype == jnp.bfloat16 for x in inputs)
  return Products(precision, narrow and precision == lax.Precision.HIGHEST)


def masked_sums(
  mask: Float32[Array, "rows c"], x: Float32[Array, "c k"]
) -> Float32[Array, "rows k"]:
  """Sums of rows of x, each over those that a row of the mask names.

  In three passes, where nothing is lost but by adding in float32.

  Args:
    mask: Ones and zeros; under `jax.vmap`, the same for all heads.
    x: Finite numbers.
  """
  masks = [mask.astype(jnp.bfloat16)] * 3
  return _mask_product(
    jnp.concatenate(masks, axis=1), jnp.concatenate(_parts(x, 3), axis=0)
  )


def of_all_heads(f: Callable[..., Any]) -> Callable[..., Any]:
  """A function that, under `jax.vmap`, sees all its arguments for each head.

  What is the same for all heads is repeated, which costs nothing. Left to
  itself, `vmap` makes the heads rows of one product and puts its result in
  order again, number by number; and it makes gathers that Mosaic has not got.

  Args:
    f: A function of arrays.
  """
  wrapped = jax.custom_batching.custom_vmap(f)

  @wrapped.def_vmap
  def _(size: int, batched: Sequence[bool], *xs: Array) -> tuple[Any, bool]:
    repeated = (
      x if known else jnp.broadcast_to(x, (size, *x.shape))
      for x, known in zip(xs, batched, strict=True)
    )
    return jax.vmap(f)(*repeated), True

  return wrapped


@of_all_heads
def _mask_product(mask: Array, x: Array) -> Array:
  return dot(mask, x, None)


def _parts(x: Float[Array, "rows k"], count: int) -> tuple[Array, ...]:
  """Bfloat16 matrices that add up to x, but for what is below the last.

  Cut off by a mask: a conversion to bfloat16 and back is something that
  compilers may leave out. What remains is rounded.

  Args:
    x: Float32; a bfloat16 matrix is its only part.
    count: How many.
  """
  if x.dtype == jnp.bfloat16:
    return (x,)
  found = []
  for _ in range(count - 1):
    bits = lax.bitcast_convert_type(x, jnp.int32) & _UPPER
    upper = lax.bitcast_convert_type(bits, jnp.float32)
    found.append(upper.astype(jnp.bfloat16))
    x = x - upper
  return *found, x.astype(jnp.bfloat16)
