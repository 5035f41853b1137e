"""The weights of a model, compared with what its configuration makes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import core, dtypes, tree_util

from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder


def check_model_weights(model: HybridDecoder) -> None:
  """Refuses weights that the programs of a configuration cannot take.

  Of another dtype they would be compiled for again, and give other numbers; of
  another shape they would fail, or be broadcast, in the first program.

  Args:
    model: Whose weights are looked at, and not read. What NumPy has in 64 bits
      counts as what JAX makes of it.

  Raises:
    ValueError: Naming the first that is no array, is gone, or differs in shape
      or in dtype, and what it must be.
  """
  wanted = _weights_of(model.config)
  given = tree_util.tree_leaves_with_path(model)
  if len(given) != len(wanted):
    raise ValueError(
      f"model has {len(given)} weights; its configuration makes {len(wanted)}."
    )
  for (path, leaf), (shape, dtype) in zip(given, wanted, strict=True):
    name = tree_util.keystr(path).removesuffix(".value")
    found = _found(leaf)
    if found != (shape, dtype):
      is_one = isinstance(found, tuple)
      told = f"{found[1]}{list(found[0])}" if is_one else found
      raise ValueError(
        f"model: its weight {name} is {told}; its configuration makes it "
        f"{dtype}{list(shape)}."
      )


@functools.lru_cache(maxsize=16)
def _weights_of(config: ModelConfig) -> tuple[tuple[Any, Any], ...]:
  """Shape and dtype of each weight, in the order of `jax.tree.leaves`."""
  model = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(model))


def _found(leaf: Any) -> tuple[tuple[int, ...], Any] | str:
  """Shape and dtype of a weight, or in a word what it is instead."""
  masked = isinstance(leaf, np.ma.MaskedArray)
  if masked or not isinstance(leaf, jax.Array | np.ndarray):
    return f"no array but {type(leaf).__name__}"
  traced = isinstance(leaf, core.Tracer)
  if isinstance(leaf, jax.Array) and not traced and leaf.is_deleted():
    return "gone (donated to a training step, for example)"
  # NumPy counts durations as integers, and has bytes in another order.
  numbers = jnp.issubdtype(leaf.dtype, np.number) and leaf.dtype.kind != "m"
  if not numbers or not leaf.dtype.isnative:
    return f"an array of {leaf.dtype}"
  return leaf.shape, dtypes.canonicalize_dtype(leaf.dtype)
