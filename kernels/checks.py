"""Shapes of the operations, checked where they enter: one sentence each."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jaxtyping import Array

from sparse_prefix_jax.kernels.chunk_algebra import BLOCK
from sparse_prefix_jax.kernels.chunks import Chunks


def check_shapes(
  operation: str, chunks: Chunks, **arrays: tuple[Array, str]
) -> dict[str, int]:
  """Refuses arrays that are no numbers, or whose axes do not belong together.

  Broadcasting would take an axis of one for any other, in silence.

  Args:
    operation: The name of the operation, for the message.
    chunks: What each packed chunk reads, writes and holds; integers [n] each.
    **arrays: An array and its axes, as in "n c h k"; one letter has one size.
      All but pools are floating point.

  Returns:
    The size of every letter.

  Raises:
    ValueError: Naming the first argument that does not fit.

  Example:
    >>> chunks = Chunks(*jnp.zeros((5, 2), jnp.int32))
    >>> check_shapes("sum", chunks, x=(jnp.zeros((2, 3)), "n c"))
    {'n': 2, 'c': 3}
  """
  check_kind(operation, "chunks", chunks, Chunks)
  fields = {f"chunks.{name}": x for name, x in chunks._asdict().items()}
  sizes = check_axes(
    operation, **arrays, **{name: (x, "n") for name, x in fields.items()}
  )
  check_floating(operation, **inputs_among(arrays))
  return sizes


def inputs_among(arrays: Mapping[str, tuple[Array, str]]) -> dict[str, Array]:
  """All arrays but pools, whose dtype `check_pool` compares with another.

  Args:
    arrays: An array and its axes, by name; those of pools begin with s, slots,
      or p, pages.

  Example:
    >>> x = jnp.ones(1)
    >>> list(inputs_among({"x": (x, "b"), "pool": (x, "s")}))
    ['x']
  """
  return {
    name: array
    for name, (array, axes) in arrays.items()
    if axes.split()[0] not in ("s", "p")
  }


def check_kind(operation: str, name: str, value: Any, kind: type) -> None:
  """Refuses what is not of the class whose fields are read.

  Args:
    operation: The name of the operation, for the message.
    name: Of the argument.
    value: What was given.
    kind: The class.

  Raises:
    ValueError: Naming both classes.

  Example:
    >>> check_kind("sum", "chunks", (1, 2), Chunks)
    Traceback (most recent call last):
    ValueError: chunks of sum is a tuple; it must be Chunks.
  """
  if not isinstance(value, kind):
    raise ValueError(
      f"{name} of {operation} is {_named(value)}; it must be {kind.__name__}."
    )


def check_floating(operation: str, **arrays: Array) -> None:
  """Refuses arrays of whole, complex or very short numbers, or of none.

  Weights of a softmax would be rounded to integers, an imaginary part be
  dropped; and sums in 8 bits are none.

  Args:
    operation: The name of the operation, for the message.
    **arrays: What must hold floating point of 16 bits or more.

  Raises:
    ValueError: Naming the first that does not.

  Example:
    >>> check_floating("sum", x=jnp.zeros(2, jnp.int8))
    Traceback (most recent call last):
    ValueError: x of sum is int8; it must be floating point of 16 bits or more.
  """
  for name, array in arrays.items():
    real = jnp.issubdtype(array.dtype, jnp.floating)
    if not real or array.dtype.itemsize < 2:
      raise ValueError(
        f"{name} of {operation} is {array.dtype}; it must be floating point of "
        "16 bits or more."
      )


def as_gates(*arrays: Any) -> tuple[Any, ...]:
  """Decays and strengths in float32, which all implementations take.

  The exponential of a decay in bfloat16 would have 8 bits. Their values stay as
  they were rounded.

  Args:
    *arrays: Of any floating point; None stays None.

  Example:
    >>> (gate,) = as_gates(jnp.ones(1, jnp.bfloat16))
    >>> gate.dtype.name
    'float32'
  """
  return tuple(
    None if x is None else jnp.asarray(x, jnp.float32) for x in arrays
  )


def as_precision(
  operation: str, precision: str | lax.Precision | None
) -> lax.Precision:
  """The precision that a name, or JAX's own constant, stands for.

  Args:
    operation: The name of the operation, for the message.
    precision: Of products.

  Raises:
    ValueError: It stands for none.

  Example:
    >>> as_precision("sum", "highest").name
    'HIGHEST'
  """
  try:
    if precision is None or isinstance(precision, str | lax.Precision):
      return lax.Precision(precision)
  except ValueError:
    pass
  shown = " ".join(repr(precision).split())[:80]
  raise ValueError(
    f"precision of {operation} is {shown}; it must be default, high or highest."
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
    check_array(operation, name, array, f" [{axes}]")
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


def check_array(operation: str, name: str, value: Any, axes: str = "") -> None:
  """Refuses what JAX does not compute with; a mask would be lost.

  Args:
    operation: The name of the operation, for the message.
    name: Of the argument.
    value: What was given.
    axes: What it must have, for the message.

  Raises:
    ValueError: Naming what it is.

  Example:
    >>> check_array("sum", "x", [1.0])
    Traceback (most recent call last):
    ValueError: x of sum is a list; it must be an array.
  """
  masked = isinstance(value, np.ma.MaskedArray)
  # What stands for an array, as a parameter of a module does, is one.
  own = isinstance(value, jax.Array | np.ndarray)
  if masked or not (own or hasattr(value, "__jax_array__")):
    raise ValueError(
      f"{name} of {operation} is {_named(value)}; it must be an array{axes}."
    )
  if isinstance(value, np.ndarray) and not _has_numbers_of_jax(value.dtype):
    raise ValueError(
      f"{name} of {operation} is {value.dtype}; JAX has no such numbers: "
      "convert it first, to float32 or int32 for example."
    )
  if isinstance(value, core.Tracer) or not isinstance(value, jax.Array):
    return
  if jnp.issubdtype(value.dtype, jax.dtypes.extended):
    raise ValueError(
      f"{name} of {operation} is {value.dtype}; it must hold numbers."
    )
  if value.is_deleted():
    raise ValueError(
      f"{name} of {operation} is deleted: it was donated to a program, whose "
      "result has its place."
    )


def _has_numbers_of_jax(dtype: np.dtype) -> bool:
  """Whether they are numbers or bools of 64 bits at most, in native order."""
  # NumPy counts durations as integers.
  known = jnp.issubdtype(dtype, np.number) and dtype.kind != "m"
  fits = dtype.isnative and not (dtype.kind == "f" and dtype.itemsize > 8)
  return fits and (known or dtype.kind == "b")


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


def check_pool(
  operation: str, pool: Array, dtype: Any, name: str = "the pool"
) -> None:
  """Refuses a pool of another dtype: a state would be rounded in silence.

  Args:
    operation: The name of the operation, for the message.
    pool: The states.
    dtype: What they must be.
    name: What the pool is called.

  Raises:
    ValueError: Naming both dtypes.
  """
  if pool.dtype != jnp.dtype(dtype):
    raise ValueError(
      f"{name} of {operation} is {pool.dtype}; it must be {jnp.dtype(dtype)}."
    )
