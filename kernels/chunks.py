"""The packed form that every operation shares: chunks, slots, one scan.

A *packed chunk* is c tokens of one request; the chunks of a request stand
together, in order, and the chunks of all requests of a call are packed along
one axis `n` of static length. How much of it is real work is data, never shape:
`length` counts the real tokens of a chunk (0 = inactive).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jaxtyping import Array, Bool, Int32

from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.kernels.loops import scan_into_buffers

ZERO = -1
"""`Chunks.read`: begin from the zero state (the empty prefix)."""
CARRY = -2
"""`Chunks.read`: go on from the chunk before, in the same call."""
NONE = -3
"""`Chunks.write`: keep no state of this chunk."""


GPU_ROWS = 1024
"""Rows that what must not see their number takes at once on a GPU."""
_BLOCK = 4
"""Rows that a step takes at a time on a CPU."""
_LARGE = 1 << 18
"""Bytes of a carry for which it does."""


class Chunks(NamedTuple):
  """What each of n packed chunks reads, writes and holds.

  Attributes:
    read: Slot to resume from, or ZERO, or CARRY. [n]
    write: Slot that receives the state after the chunk, or NONE. [n]
    length: Real tokens, 0 to c; 0 marks an inactive chunk. [n]
    position: Absolute position of the first token, a lattice point. [n]
    request: Row of the page table. [n]
  """

  read: Int32[Array, "n"]
  write: Int32[Array, "n"]
  length: Int32[Array, "n"]
  position: Int32[Array, "n"]
  request: Int32[Array, "n"]


class Rows(NamedTuple):
  """What each of b rows of a decode step reads and writes: one token each.

  Attributes:
    read: Slot of the carry before the token, or ZERO. [b]
    write: Slot that receives the carry after it, or NONE. [b]
    position: Absolute position of the token. [b]
    active: False for a free row, which writes nothing. [b]
  """

  read: Int32[Array, "b"]
  write: Int32[Array, "b"]
  position: Int32[Array, "b"]
  active: Bool[Array, "b"]


Captures: TypeAlias = (
  Sequence[int] | Sequence[Int32[Array, ""]] | np.ndarray | Int32[Array, "m"]
)
"""Numbers of steps after which a scan hands out its carry."""
Cell = Callable[[Any, Any, Array], tuple[Any, Any]]


def packed_scan(
  cell: Cell, pools: Any, xs: Any, chunks: Chunks
) -> tuple[Any, Any]:
  """Restore, scan and capture in one pass: what the kernels are held to.

  For each chunk in order: the carry is read from its slot (or is zero, or flows
  on), `cell` advances it, and the carry after the chunk is written to its slot.
  What is not asked for is *selected* away, so a slot that is not written keeps
  its bits, NaN included, and an inactive chunk leaves the carry as it was.

  The scan has static length and its body a barrier on both sides: the body is
  one computation, whatever n is and whatever surrounds it. A single chunk gets
  an inactive one behind it, see `two_steps`.

  Args:
    cell: `(carry, x, length) -> (carry, y)` for one chunk.
    pools: Tree of arrays [s ...], the slots of the carry's leaves.
    xs: Tree of arrays [n ...].
    chunks: What to read, write and advance.

  Returns:
    ys [n ...] and the pools with the captured states.
  """

  def body(loop: Any, step: Any) -> tuple[Any, Any]:
    carry, pools = loop
    x, read, write, length = step
    carry = restore(pools, read, carry)
    carry, x, length = barrier((carry, x, length))
    advanced, y = barrier(cell(carry, x, length))
    carry = select(length > 0, advanced, carry)
    return (carry, capture(pools, write, carry)), y

  n = chunks.read.shape[0]
  empty = jax.tree.map(lambda pool: jnp.zeros_like(pool[0]), pools)
  xs, read, write, length = two_steps(
    (xs, chunks.read, chunks.write, chunks.length)
  )
  real = jnp.arange(length.size, dtype=jnp.int32) < n
  read = jnp.where(real, read, CARRY)
  write = jnp.where(real, write, NONE)
  length = jnp.where(real, length, 0)
  steps = (xs, read, write, length)
  (_, pools), ys = scan_into_buffers(body, (empty, pools), steps)
  return jax.tree.map(lambda y: y[:n], ys), pools


def map_chunks(function: Callable[..., Any], *xs: Any) -> Any:
  """Applies `function` chunk by chunk, by a scan of static length.

  For what must not see how many rows there are (norms of heads, narrow
  products, softmax): its shapes are those of one chunk, always.
  """

  def body(_: None, x: Any) -> tuple[None, Any]:
    y = function(*barrier(x))
    return None, barrier(y)

  n = jax.tree.leaves(xs)[0].shape[0]
  ys = scan_into_buffers(body, None, two_steps(xs))[1]
  return jax.tree.map(lambda y: y[:n], ys)


def map_rows(function: Callable[..., Any], *xs: Any) -> Any:
  """Applies `function` to rows, the tokens of chunks, in fixed numbers.

  `map_chunks` for a function of rows. On a GPU a loop over chunks is many times
  its work: 16 steps of a few kernels of microseconds, and copies around each.
  So there it takes 1,024 rows at a time, see `in_fixed_rows`.

  Args:
    function: Trees of rows [rows ...] to trees of rows; a row of its results
      depends on that row of its arguments alone.
    *xs: Trees of arrays [n c ...].
  """
  if current_device().platform != "gpu":
    return map_chunks(function, *xs)
  n, c = jax.tree.leaves(xs)[0].shape[:2]
  rows = jax.tree.map(lambda x: x.reshape(n * c, *x.shape[2:]), xs)
  ys = in_fixed_rows(function, *rows)
  return jax.tree.map(lambda y: y.reshape(n, c, *y.shape[1:]), ys)


def in_fixed_rows(
  function: Callable[..., Any], *xs: Any, tile: int = GPU_ROWS
) -> Any:
  """Applies `function` to rows, always to as many at once, between barriers.

  A sum over a row, or a narrow product, is another kernel on a GPU for another
  number of rows, and has other bits (measured: norms of 64, 128 and 256 rows of
  1,024 differ). So rows are padded with zeros to 1,024, those of the usual
  ladder's top: a few microseconds, and no loop but for more.

  Args:
    function: As in `map_rows`.
    *xs: Trees of arrays [rows ...].
    tile: How many at once.
  """
  count = jax.tree.leaves(xs)[0].shape[0]
  tiles = -(-count // tile)

  def cut(x: Array) -> Array:
    padding = [(0, tiles * tile - count), *[(0, 0)] * (x.ndim - 1)]
    return jnp.pad(x, padding).reshape(tiles, tile, *x.shape[1:])

  cuts = jax.tree.map(cut, xs)
  if tiles > 1:
    ys = map_chunks(function, *cuts)
  else:
    first = jax.tree.map(lambda x: x[0], cuts)
    y = barrier(function(*barrier(first)))
    ys = jax.tree.map(lambda x: x[None], y)
  return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:count], ys)


def rounded(product: Callable[[Array], Array], x: Array) -> Array:
  """Applies a product whose results are rounded, whatever is added to them.

  On a CPU XLA drops barriers before it fuses: a product and a sum behind it
  become one instruction that rounds once (measured: 2,162 of 8,192 sums have
  other bits), and bfloat16 is not rounded in between. What comes from outside
  of a program is. So there the product is made in a loop, which writes it down.

  Args:
    product: An array to one of its shape, number by number.
    x: Of chunks, [n c d], or of rows, [b d].
  """
  if not isinstance(x, core.Tracer):
    return product(x)
  if current_device().platform == "gpu":
    return barrier(product(barrier(x)))
  parts = x if x.ndim > 2 else x[None]
  return map_chunks(product, parts).reshape(x.shape)


def two_steps(xs: Any) -> Any:
  """Steps [n ...], a single one doubled: what a scan needs to stay a loop.

  XLA removes a loop of one step and fuses its body with what stands around it,
  and then the body has other bits than in a loop of more (measured: with one
  value head). The caller makes the second step do nothing and drops its y.
  """

  def leaf(x: Array) -> Array:
    return jnp.concatenate([x, x]) if x.shape[0] == 1 else x

  return jax.tree.map(leaf, xs)


def select(condition: Array, if_true: Any, if_false: Any) -> Any:
  """Leaf-wise `where`: keeps bits (-0.0, NaN) that arithmetic would lose."""
  return jax.tree.map(
    lambda x, y: jnp.where(condition, x, y), if_true, if_false
  )


def restore(pools: Any, read: Array, carry: Any) -> Any:
  """The carry that slot `read` holds; zero at ZERO, `carry` at CARRY.

  A sentinel never reaches an index: slot 0 is read then, and selected away.

  Args:
    pools: Tree of arrays [s ...].
    read: A slot, ZERO or CARRY; a traced scalar.
    carry: What the chunk before left, in the dtypes of the pools.
  """
  slot = jnp.maximum(read, 0)

  def leaf(pool: Array, flowing: Array) -> Array:
    stored = lax.dynamic_index_in_dim(pool, slot, 0, keepdims=False)
    stored = jnp.where(read == ZERO, jnp.zeros_like(stored), stored)
    return jnp.where(read == CARRY, flowing, stored)

  return jax.tree.map(leaf, pools, carry)


def capture(pools: Any, write: Array, carry: Any) -> Any:
  """The pools with `carry` in slot `write`; unchanged bits at NONE.

  The write is always made, at NONE with what slot 0 holds already: one update
  in place, and no copy of a pool for a condition.

  Args:
    pools: Tree of arrays [s ...].
    write: A slot or NONE; a traced scalar.
    carry: Cast to the dtypes of the pools.
  """
  slot = jnp.maximum(write, 0)

  def leaf(pool: Array, value: Array) -> Array:
    held = lax.dynamic_index_in_dim(pool, slot, 0, keepdims=False)
    value = jnp.where(write == NONE, held, value.astype(pool.dtype))
    return lax.dynamic_update_index_in_dim(pool, value, slot, 0)

  return jax.tree.map(leaf, pools, carry)


def restore_rows(pools: Any, read: Int32[Array, "b"]) -> Any:
  """The carries of b running sequences: [s ...] -> [b ...], zero at ZERO.

  The form of `restore` for a decode step; rows may read the same slot.
  """
  slots = jnp.maximum(read, 0)

  def leaf(pool: Array) -> Array:
    stored = pool[slots]
    empty = (read == ZERO).reshape((-1,) + (1,) * (stored.ndim - 1))
    return jnp.where(empty, jnp.zeros_like(stored), stored)

  return jax.tree.map(leaf, pools)


def capture_rows(pools: Any, write: Int32[Array, "b"], carry: Any) -> Any:
  """Writes b carries to their slots; rows with NONE are dropped.

  The form of `capture` for a decode step. An index past the end is dropped, a
  negative one would wrap. No two rows may name one slot.
  """

  def leaf(pool: Array, value: Array) -> Array:
    slots = jnp.where(write == NONE, pool.shape[0], write)
    return pool.at[slots].set(value.astype(pool.dtype), mode="drop")

  return jax.tree.map(leaf, pools, carry)


def step_rows(
  cell: Callable[..., tuple[Any, Any]],
  pools: Any,
  xs: tuple[Any, ...],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
) -> tuple[Any, Any]:
  """Restores b carries, advances each by a token and captures them.

  The form of `packed_scan` for a decode step, with its barriers: the token is
  one computation, whatever surrounds it. On a CPU a few rows go at a time where
  states are large. All at once would be a temporary of all states, which a
  process asks the system for in every step and whose pages are not there yet
  (measured: 16 rows of 1 MiB take 4.3 times as long).

  Args:
    cell: `(carry, *xs) -> (carry, y)` for one token of any number of rows.
    pools: Tree of arrays [s ...], the slots of the carry's leaves.
    xs: Trees of arrays, those of a token [b ...].
    read: A slot or ZERO.
    write: A slot or NONE.

  Returns:
    y [b ...] and the pools with the captured states.
  """
  b = read.shape[0]
  if b <= _BLOCK or not _by_blocks(pools):
    return _step_rows(cell, pools, xs, read, write)
  blocks = -(-b // _BLOCK)

  def cut(x: Array, fill: int = 0) -> Array:
    padding = [(0, blocks * _BLOCK - b), *[(0, 0)] * (x.ndim - 1)]
    padded = jnp.pad(x, padding, constant_values=fill)
    return padded.reshape(blocks, _BLOCK, *x.shape[1:])

  def body(pools: Any, step: Any) -> tuple[Any, Any]:
    y, pools = _step_rows(cell, pools, *step)
    return pools, y

  steps = jax.tree.map(cut, xs), cut(read, ZERO), cut(write, NONE)
  pools, ys = lax.scan(body, pools, steps)
  return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:b], ys), pools


def _step_rows(
  cell: Callable[..., tuple[Any, Any]],
  pools: Any,
  xs: tuple[Any, ...],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
) -> tuple[Any, Any]:
  """`step_rows` of all its rows at once."""
  carry = restore_rows(pools, read)
  carry, xs = barrier((carry, xs))
  carry, y = barrier(cell(carry, *xs))
  return y, capture_rows(pools, write, carry)


def _by_blocks(pools: Any) -> bool:
  """Whether a step takes its rows block by block."""
  leaves = jax.tree.leaves(pools)
  row = sum(x.dtype.itemsize * math.prod(x.shape[1:]) for x in leaves)
  return current_device().platform == "cpu" and row >= _LARGE
