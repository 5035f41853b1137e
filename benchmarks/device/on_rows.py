"""What a layer does to all rows of a program at once, as XLA compiles it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.layers import Numerics
from sparse_prefix_jax.layers.dense import dense
from sparse_prefix_jax.layers.normalization import Norm, residual_norm

OnRows: TypeAlias = Callable[[Any, jax.Array], jax.Array]
"""What is done to rows [m width], given a weight."""


def on_rows(width: int, dtype: str) -> dict[str, tuple[OnRows, Any]]:
  """What is done to rows, and with which weight, by name.

  Args:
    width: Of the model.
    dtype: Of rows and weights.
  """
  norm = Norm(centred=True)

  def product(weight: Any, x: jax.Array) -> jax.Array:
    return dense(x[:, None], weight, Numerics())[:, 0]

  def normed(weight: Any, x: jax.Array) -> jax.Array:
    # [k c d], as prefill has it: a decode step has one number of rows.
    return residual_norm(x[:, None], weight, norm)[:, 0]

  def silu(_: Any, x: jax.Array) -> jax.Array:
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)

  # As the projections of Qwen3.5 have, which are the widest of a layer. At its
  # smallest width alone: at the large ones they would be minutes of a device.
  more = (6144, 8192) if width == 1024 else ()
  products = {
    f"product with {columns} columns": (
      product,
      normal(columns, columns, width, dtype=dtype),
    )
    for columns in sorted({min(width, 4096), 2048, 512, *more})
  }
  scale = normal(1, width, dtype=dtype)
  return {**products, "residual norm": (normed, scale), "silu": (silu, None)}


def normal(seed: int, *shape: int, dtype: str) -> jax.Array:
  """Values of a seed, normal.

  Args:
    seed: Of the generator.
    *shape: Of the array.
    dtype: Its type.
  """
  random = np.random.default_rng(seed)
  return jnp.asarray(random.standard_normal(shape, np.float32), dtype)
