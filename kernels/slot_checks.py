"""Slots, pages and lengths, checked where their values are known.

Under `jax.jit` an argument is a tracer: its dtype is checked, its values are
not, and nothing waits for a device. Whoever compiles a program checks the plan
that it is given before it goes to the device. Outside of it an index past the
end would be clamped or dropped, and one below zero taken from the end: a state
would be lost, or be another's, in silence.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array

from sparse_prefix_jax.kernels.checks import (
  check_axes,
  check_floating,
  check_pool,
  inputs_among,
)
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks


def widened(array: Array | np.ndarray) -> Array:
  """Integers of at least 32 bits: a bound that 8 do not hold would wrap.

  Args:
    array: Of any dtype; what is not narrow is left as it is.

  Example:
    >>> widened(jnp.uint8(7)).dtype.name
    'int32'
  """
  narrow = jnp.issubdtype(array.dtype, jnp.integer) and array.dtype.itemsize < 4
  return jnp.asarray(array, jnp.int32) if narrow else jnp.asarray(array)


def numbers(name: str, values: Any) -> Array:
  """An array of what a caller gives in place of one; text is none.

  Args:
    name: What the argument is called, for the message.
    values: An array, or a list of numbers.

  Raises:
    ValueError: If they are no numbers, masked, or integers of more than 32
      bits.
  """
  if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)):
    return jnp.asarray(values)
  try:
    masked = isinstance(values, np.ma.MaskedArray)
    found = np.empty(0, object) if masked else np.asarray(values)
  except (ValueError, TypeError):  # of lists of several lengths, for example
    found = np.empty(0, object)
  whole = found.dtype.kind in "iu"
  if whole and (found >= -(2**31)).all() and (found < 2**31).all():
    # In the order of bytes that JAX has.
    return jnp.asarray(found.astype(found.dtype.newbyteorder("=")))
  if found.dtype.kind in "bf":
    return jnp.asarray(found.astype("bool" if found.dtype == bool else "f4"))
  shown = " ".join(repr(values).split())[:80]
  raise ValueError(
    f"{name} is {shown}; it must be an array of integers of 32 bits."
  )


def concrete(name: str, array: Array | np.ndarray) -> np.ndarray | None:
  """The values of an argument that numbers something, where there are any.

  Args:
    name: What the argument is called, for the message.
    array: Integers of any shape.

  Returns:
    The values, of 32 bits at least, so that any bound can be compared; None for
    a tracer, whose values are not known yet, and for an array of which other
    processes hold a part.

  Raises:
    ValueError: The argument does not hold integers; a fraction would be cut off
      to the number of another slot, and a mask be taken for slots 0 and 1.

  Example:
    >>> concrete("read", jnp.array([2, -1])).tolist()
    [2, -1]
    >>> jax.jit(lambda read: concrete("read", read) is None)(jnp.array([2]))
    Array(True, dtype=bool)
  """
  # NumPy counts durations as integers.
  if array.dtype.kind == "m" or not jnp.issubdtype(array.dtype, jnp.integer):
    raise ValueError(f"{name} has dtype {array.dtype}; it must hold integers.")
  if isinstance(array, core.Tracer):
    return None
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    return None
  values = np.asarray(array)
  return values.astype(np.int32) if values.dtype.itemsize < 4 else values


def _check_range(
  name: str, values: np.ndarray | None, low: int, end: int, allowed: str
) -> None:
  """Refuses values outside [low, end); None, of a tracer, has none."""
  if values is None:
    return
  wrong = values[(values < low) | (values >= end)]
  if wrong.size:
    raise ValueError(f"{name} holds {wrong[0]}; it must be {allowed}.")


def _check_once(name: str, values: np.ndarray | None, what: str) -> None:
  """Refuses a number that stands twice."""
  if values is None:
    return
  found, counts = np.unique(values, return_counts=True)
  if np.any(counts > 1):
    raise ValueError(
      f"{name} names {what} {found[np.argmax(counts)]} twice; each may be "
      "written once in a call."
    )


def check_slots(
  operation: str, chunks: Chunks, sizes: Mapping[str, int]
) -> None:
  """Refuses chunks that read, write or hold what there is not.

  Args:
    operation: The name of the operation, for the message.
    chunks: What each packed chunk reads, writes and holds; see `check_shapes`.
    sizes: The sizes of its letters; c and s, the slots, are read.

  Raises:
    ValueError: Naming the field, what it holds, and what is allowed. `position`
      and `request`, which an operation on states does not read, are not looked
      at: a segment is a chunk that restores and those that carry on from it.
  """
  s, c = sizes["s"], sizes["c"]
  name = f"chunks.{{}} of {operation}".format
  read = concrete(name("read"), chunks.read)
  write = concrete(name("write"), chunks.write)
  length = concrete(name("length"), chunks.length)
  _check_range(
    name("read"), read, CARRY, s, f"a slot below {s}, ZERO (-1) or CARRY (-2)"
  )
  _check_write(name("write"), write, s)
  _check_range(name("length"), length, 0, c + 1, f"0 to {c}")
  if read is None or write is None or length is None:
    return
  # Chunks that carry on run one after another; inactive ones do not run.
  segment, runs = np.cumsum(read != CARRY), length > 0
  fields = (x[runs] for x in (read, write, segment))
  _check_apart(name("write"), *fields, what="segment")


def check_core(
  operation: str,
  length: Array,
  initial_state: tuple[Array, str],
  dtype: Any = jnp.float32,
  **inputs: tuple[Array, str],
) -> None:
  """Refuses the arguments of a scan of one request, by the names it has.

  Args:
    operation: The name of the operation, for the message.
    length: Real tokens of each chunk. [n]
    initial_state: The state before the first chunk, and its axes.
    dtype: Of the state.
    **inputs: An array and its axes, those of chunks "n c ..."; floating point.

  Raises:
    ValueError: Naming the first argument that does not fit.

  Example:
    >>> x, state = jnp.zeros((2, 16, 3)), jnp.zeros(3)
    >>> given = {"initial_state": (state, "d"), "x": (x, "n c d")}
    >>> check_core("sum", jnp.array([16, 17]), **given)
    Traceback (most recent call last):
    ValueError: length of sum holds 17; it must be 0 to 16.
  """
  state, axes = initial_state
  sizes = check_axes(
    operation, **inputs, initial_state=(state, axes), length=(length, "n")
  )
  check_floating(operation, **inputs_among(inputs))
  # JAX takes what NumPy has in 64 bits with 32.
  kept = jax.dtypes.canonicalize_dtype(state.dtype)
  if kept != jnp.dtype(dtype):
    check_pool(operation, state, dtype, "initial_state")
  check_lengths(operation, length, sizes["c"])


def check_matrix_core(
  operation: str,
  length: Array,
  initial_state: Array,
  q: Array,
  k: Array,
  v: Array,
  **gates: tuple[Array, str],
) -> None:
  """Refuses what `check_core` does, of an operation whose state is a matrix.

  Args:
    operation: The name of the operation, for the message.
    length: Real tokens of each chunk. [n]
    initial_state: [hv k v], float32.
    q: [n c h k].
    k: [n c h k].
    v: [n c hv v].
    **gates: What else it takes, and the axes of that.

  Raises:
    ValueError: Naming the first argument that does not fit.
  """
  inputs = {"q": (q, "n c h k"), "k": (k, "n c h k"), "v": (v, "n c hv v")}
  check_core(operation, length, (initial_state, "hv k v"), **inputs, **gates)


def check_lengths(operation: str, length: Array, chunk: int) -> None:
  """Refuses numbers of real tokens that no chunk has, where they are known.

  Args:
    operation: The name of the operation, for the message.
    length: Real tokens of each chunk. [n]
    chunk: Tokens of a whole one.

  Raises:
    ValueError: If one is negative or above it, or they are no integers.
  """
  name = f"length of {operation}"
  _check_range(name, concrete(name, length), 0, chunk + 1, f"0 to {chunk}")


def _check_write(name: str, write: np.ndarray | None, slots: int) -> None:
  """Refuses what is neither a slot nor NONE, and a slot that stands twice."""
  if write is None:
    return
  kept = write[write != NONE]
  _check_range(name, kept, 0, slots, f"a slot below {slots} or NONE ({NONE})")
  _check_once(name, kept, "slot")


def check_rows(
  operation: str, read: Array, write: Array, **arrays: tuple[Array, str]
) -> dict[str, int]:
  """Refuses the arguments of a step that do not belong together.

  Args:
    operation: The name of the operation, for the message.
    read: The slot of each row, or ZERO. [b]
    write: The slot of each row, or NONE; no slot stands twice, and none is one
      that another row reads. [b]
    **arrays: An array and its axes, those of the rows "b ..."; one of them has
      an axis s, the slots. All but pools are floating point.

  Returns:
    The size of every letter.

  Raises:
    ValueError: Naming the first argument that does not fit, or the value that
      is no slot.

  Example:
    >>> pool, x = jnp.zeros((4, 3)), jnp.zeros((1, 3))
    >>> arrays = {"x": (x, "b d"), "pool": (pool, "s d")}
    >>> check_rows("step", jnp.array([0]), jnp.array([4]), **arrays)
    Traceback (most recent call last):
    ValueError: write of step holds 4; it must be a slot below 4 or NONE (-3).
  """
  sizes = check_axes(operation, **arrays, read=(read, "b"), write=(write, "b"))
  check_floating(operation, **inputs_among(arrays))
  s, name = sizes["s"], f"{{}} of {operation}".format
  reads, writes = concrete(name("read"), read), concrete(name("write"), write)
  _check_range(name("read"), reads, ZERO, s, f"a slot below {s} or ZERO (-1)")
  _check_write(name("write"), writes, s)
  rows = np.arange(sizes["b"])
  _check_apart(name("write"), reads, writes, rows, what="row")
  return sizes


def _check_apart(
  name: str,
  reads: np.ndarray | None,
  writes: np.ndarray | None,
  owner: np.ndarray,
  *,
  what: str,
) -> None:
  """Refuses a slot that one owner writes and another reads, before or after."""
  if reads is None or writes is None:
    return
  shared = (writes[:, None] == reads[None]) & (writes[:, None] >= 0)
  shared &= owner[:, None] != owner[None]
  if shared.any():
    raise ValueError(
      f"{name} names slot {writes[shared.any(axis=1)][0]}, which another "
      f"{what} reads; {what}s may run at the same time."
    )


def check_pages(
  operation: str,
  chunks: Chunks,
  page_table: Array,
  sizes: Mapping[str, int],
) -> None:
  """Refuses chunks that write or attend to pages that there are not.

  Args:
    operation: The name of the operation, for the message.
    chunks: What each packed chunk holds and where; see `check_shapes`. `read`
      and `write`, which attention does not read, are not looked at.
    page_table: Pages of each request, in order. [requests pages]
    sizes: The sizes of its letters; c and p, the pages of the pools, are read.

  Raises:
    ValueError: Naming the argument, what it holds, and what is allowed.
  """
  check_axes(operation, page_table=(page_table, "requests pages"))
  p, c, (rows, width) = sizes["p"], sizes["c"], page_table.shape
  name = f"chunks.{{}} of {operation}".format
  table = concrete(f"page_table of {operation}", page_table)
  length = concrete(name("length"), chunks.length)
  position = concrete(name("position"), chunks.position)
  request = concrete(name("request"), chunks.request)
  _check_table(operation, table, p)
  _check_range(name("length"), length, 0, c + 1, f"0 to {c}")
  _check_range(
    name("position"), position, 0, c * width, f"0 or more and below {c * width}"
  )
  _check_range(name("request"), request, 0, rows, f"a row below {rows}")
  if position is not None and np.any(position % c):
    raise ValueError(
      f"{name('position')} holds {position[np.argmax(position % c > 0)]}; it "
      f"must be a multiple of {c}."
    )
  if length is None or position is None or request is None or table is None:
    return
  active = length > 0
  written = table[request[active], position[active] // c]
  _check_once(operation, written, "page")


def _check_table(operation: str, table: np.ndarray | None, pages: int) -> None:
  """Refuses what is no page; what is not used may be any valid page."""
  allowed = f"a page below {pages}"
  _check_range(f"page_table of {operation}", table, 0, pages, allowed)


def check_tokens(
  operation: str,
  position: Array,
  active: Array,
  page_table: Array,
  sizes: Mapping[str, int],
) -> None:
  """Refuses tokens of a step that have no place in the pages of their rows.

  Args:
    operation: The name of the operation, for the message.
    position: Absolute position of the token of each row. [b]
    active: False for a free row, which writes nothing. [b]
    page_table: Pages of each row, in order. [b pages]
    sizes: The sizes of its letters; c and p, the pages of the pools, are read.

  Raises:
    ValueError: Naming the argument, what it holds, and what is allowed.
  """
  if active.dtype != bool:
    raise ValueError(
      f"active of {operation} is {active.dtype}; it must be bool."
    )
  p, c, width = sizes["p"], sizes["c"], page_table.shape[1]
  name = f"{{}} of {operation}".format
  positions = concrete(name("position"), position)
  table = concrete(name("page_table"), page_table)
  _check_range(
    name("position"),
    positions,
    0,
    c * width,
    f"0 or more and below {c * width}",
  )
  _check_table(operation, table, p)
  if positions is None or table is None or isinstance(active, core.Tracer):
    return
  places = table[np.arange(len(positions)), positions // c] * c + positions % c
  _check_once(operation, places[np.asarray(active)], "place of a token")
