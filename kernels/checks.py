"""Shapes of the operations, checked where they enter: one sentence each."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from sparse_prefix_jax.kernels.chunk_algebra import BLOCK
from sparse_prefix_jax.kernels.chunks import Chunks


def check_shapes(
  operation: str, chunks: Chunks, **arrays: tuple[Array, str]
) -> dict[str, int]:
  """Refuses arrays whose axes do not belong together.

  Broadcasting would take an axis of one for any other, in silence.

  Args:
    operation: For the message.
    chunks: Each field is [n].
    **arrays: Array and its axes, as in "n c h k"; one letter has one size.

  Returns:
    The size of every letter.

  Raises:
    ValueError: Naming the first array that does not fit.

  Example:
    >>> chunks = Chunks(*jnp.zeros((5, 2), jnp.int32))
    >>> check_shapes("sum", chunks, x=(jnp.zeros((2, 3)), "n c"))
    {'n': 2, 'c': 3}
  """
  sizes: dict[str, int] = {}
  fields = {f"chunks.{k}": (x, "n") for k, x in chunks._asdict().items()}
  for name, (array, axes) in (arrays | fields).items():
    letters = axes.split()
    if array.ndim != len(letters):
      raise ValueError(
        f"{name} of {operation} has shape {array.shape}; it must be [{axes}]."
      )
    for letter, size in zip(letters, array.shape):
      if sizes.setdefault(letter, size) != size:
        raise ValueError(
          f"{name} of {operation} has shape {array.shape} for [{axes}], but "
          f"{letter} is {sizes[letter]} elsewhere."
        )
  _check_not_empty(operation, sizes)
  return sizes


def _check_not_empty(operation: str, sizes: Mapping[str, int]) -> None:
  for letter, size in sizes.items():
    if size < 1:
      raise ValueError(f"{operation} has no {letter}: that axis is empty.")


def check_heads(operation: str, sizes: Mapping[str, int], pool: Array) -> None:
  """Refuses what an operation on states [s hv k v] cannot be given.

  Args:
    operation: For the message.
    sizes: Of its letters.
    pool: Its states.

  Raises:
    ValueError: If value heads do not share key heads evenly, if a chunk does
      not consist of blocks, or if states are not float32.
  """
  if sizes["hv"] % sizes["h"]:
    raise ValueError(
      f"{operation} has {sizes['hv']} value heads for {sizes['h']} key heads; "
      "they must be a multiple."
    )
  if sizes["c"] > BLOCK and sizes["c"] % BLOCK:
    raise ValueError(
      f"{operation} has chunks of {sizes['c']} tokens; above {BLOCK} they must "
      "be a multiple of it."
    )
  check_pool(operation, pool, jnp.float32)


def check_pool(operation: str, pool: Array, dtype: Any) -> None:
  """Refuses a pool of another dtype: a state would be rounded in silence.

  Raises:
    ValueError: Naming both dtypes.
  """
  if pool.dtype != jnp.dtype(dtype):
    raise ValueError(
      f"the pool of {operation} is {pool.dtype}; it must be {jnp.dtype(dtype)}."
    )
