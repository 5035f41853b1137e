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
    operation: The name of the operation, for the message.
    chunks: What each packed chunk reads, writes and holds; integers [n] each.
    **arrays: An array and its axes, as in "n c h k"; one letter has one size.

  Returns:
    The size of every letter.

  Raises:
    ValueError: Naming the first argument that does not fit.

  Example:
    >>> chunks = Chunks(*jnp.zeros((5, 2), jnp.int32))
    >>> check_shapes("sum", chunks, x=(jnp.zeros((2, 3)), "n c"))
    {'n': 2, 'c': 3}
  """
  if not isinstance(chunks, Chunks):
    raise ValueError(
      f"chunks of {operation} is a {type(chunks).__name__}; it must be Chunks."
    )
  fields = {f"chunks.{name}": x for name, x in chunks._asdict().items()}
  return check_axes(
    operation, **arrays, **{name: (x, "n") for name, x in fields.items()}
  )


def check_axes(operation: str, **arrays: tuple[Any, str]) -> dict[str, int]:
  """Refuses arguments that are no arrays of axes that belong together.

  Args:
    operation: The name of the operation, for the message.
    **arrays: An array and its axes, as in "b h k"; one letter has one size.

  Returns:
    The size of every letter.

  Raises:
    ValueError: Naming the first argument that does not fit.

  Example:
    >>> check_axes("sum", x=(jnp.zeros((2, 3)), "b k"), slot=(1, "b"))
    Traceback (most recent call last):
    ValueError: slot of sum is an int; it must be an array [b].
  """
  sizes: dict[str, int] = {}
  for name, (array, axes) in arrays.items():
    letters = axes.split()
    # What stands for an array, as a parameter of a module does, is one.
    if not hasattr(array, "ndim") or not hasattr(array, "dtype"):
      raise ValueError(
        f"{name} of {operation} is {_named(array)}; it must be an array"
        f" [{axes}]."
      )
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


def _named(value: Any) -> str:
  """The type of a value, with its article."""
  name = type(value).__name__
  return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _check_not_empty(operation: str, sizes: Mapping[str, int]) -> None:
  for letter, size in sizes.items():
    if size < 1:
      raise ValueError(f"{operation} has no {letter}: that axis is empty.")


def check_heads(operation: str, sizes: Mapping[str, int], pool: Array) -> None:
  """Refuses what an operation on states [s hv k v] cannot be given.

  Args:
    operation: The name of the operation, for the message.
    sizes: The sizes of its letters; h, hv and, of chunks, c are read.
    pool: The states.

  Raises:
    ValueError: Value heads do not share key heads evenly, a chunk does not
      consist of blocks, or states are not float32.
  """
  if sizes["hv"] % sizes["h"]:
    raise ValueError(
      f"{operation} has {sizes['hv']} value heads for {sizes['h']} key heads; "
      "they must be a multiple."
    )
  c = sizes.get("c", 1)  # a step has rows of one token
  if c > BLOCK and c % BLOCK:
    raise ValueError(
      f"{operation} has chunks of {c} tokens; above {BLOCK} they must be a "
      "multiple of it."
    )
  check_pool(operation, pool, jnp.float32)


def check_pool(operation: str, pool: Array, dtype: Any) -> None:
  """Refuses a pool of another dtype: a state would be rounded in silence.

  Args:
    operation: The name of the operation, for the message.
    pool: The states.
    dtype: What they must be.

  Raises:
    ValueError: Naming both dtypes.
  """
  if pool.dtype != jnp.dtype(dtype):
    raise ValueError(
      f"the pool of {operation} is {pool.dtype}; it must be {jnp.dtype(dtype)}."
    )
