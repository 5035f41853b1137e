"""Explicit carries: the packed forms of a layer as pure functions of a carry.

`scan` takes tokens of whole requests, `cell` one token of each; the carry goes
in and comes out. No cache, no slots, no plan: for training, and for whoever has
a server of their own. The bits are those of prefill and of decode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import core
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax.kernels.captures import (
  are_lattice_captures,
  as_captures,
  check_lattice_captures,
)
from sparse_prefix_jax.kernels.checks import check_array, check_axes
from sparse_prefix_jax.kernels.chunks import Captures
from sparse_prefix_jax.kernels.slot_checks import concrete, numbers, widened
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.layers.choices import MOST, is_int
from sparse_prefix_jax.layers.explicit_programs import run_cell, run_scan
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools
from sparse_prefix_jax.layers.undivided import check_undivided

Lengths: TypeAlias = Int32[Array, "b"] | np.ndarray | list[int] | tuple
"""Real tokens of each request of a batch."""


class ExplicitCarry(NamedTuple):
  """What flows from one call to the next; all of it belongs to b requests.

  `carry._replace(position=p, slots=captured_there)` is the carry at an earlier
  position p, since later keys and values are masked.

  Attributes:
    position: Tokens so far. [b]
    slots: States, trees of arrays [b ...].
    pages: Keys and values of all tokens, trees of arrays [b pages c ...]; how
      many pages there are is the capacity.
  """

  position: Int32[Array, "b"]
  slots: Any
  pages: Any


class ExplicitScan(NamedTuple):
  """What `scan` returns.

  Attributes:
    carry: The carry after the last real token of each request.
    y: The outputs; zeros past the length of a request. [b t d]
    captured: The slots after `capture_at[i]` tokens; zeros where a request
      ends before. Trees of arrays [m b ...]
  """

  carry: ExplicitCarry
  y: Float[Array, "b t d"]
  captured: Any


class ExplicitModule(nnx.Module):
  """The parameters of a sublayer, with explicit carries for free.

  A module that derives from it has `config`, `numerics`, `__call__` over packed
  chunks and `step` (see `SublayerModule`).

  Attributes:
    config: The choices that made it.
    numerics: How it is computed.

  Example:
    >>> from sparse_prefix_jax.layers import GatedDeltaNetConfig
    >>> layer = GatedDeltaNetConfig(
    ...   key_heads=1, value_heads=1, key_width=16, value_width=16
    ... ).make(64, Numerics(), rngs=nnx.Rngs(0))
    >>> carry = layer.initialize_carry((2, 64))
    >>> x = jnp.ones((2, 100, 64))
    >>> carry, y, captured = layer.scan(carry, x, capture_at=(64,))
    >>> carry, last = layer.cell(carry, x[:, 0])
    >>> carry.position.tolist(), captured.recurrent_state.shape
    ([101, 101], (1, 2, 1, 16, 16))
  """

  config: Any
  numerics: Numerics

  def initialize_carry(
    self,
    input_shape: tuple[int, ...],
    rngs: Any = None,
    *,
    capacity: int | None = None,
  ) -> ExplicitCarry:
    """Makes the carry of empty requests.

    Args:
      input_shape: The shape of an input of `cell`: requests b, width d.
      rngs: Ignored: every request begins with a state of zeros.
      capacity: Tokens that there is room for, where keys and values are kept;
        None for `max_length`.

    Raises:
      ValueError: If the shape is none, or the capacity is out of its range.
    """
    del rngs
    if len(input_shape) != 2:
      raise ValueError(
        f"input_shape is {input_shape}; it must be (requests, width)."
      )
    batch, width = input_shape
    kept = self.config.keeps(width, self.numerics)
    return empty_carry(kept, self.numerics, batch, capacity)

  def scan(
    self,
    carry: ExplicitCarry,
    x: Float[Array, "b t d"],
    length: Lengths | None = None,
    capture_at: Captures = (),
  ) -> ExplicitScan:
    """Takes t tokens of b requests from their carries on.

    The bits are those of the packed form, whatever stands beside. Under a
    transformation values are not known and cannot be refused: a request that
    would be refused is NaN then, and so is a capture.

    Args:
      carry: Every position is a lattice point, a multiple of the chunk length.
      x: Normalised inputs.
      length: Real tokens of each request; None for t. What follows is padding.
      capture_at: Numbers of tokens of this call after which to hand out the
        slots: multiples of the chunk length, distinct.

    Returns:
      The carry after the last token, the outputs and the captured slots.

    Raises:
      ValueError: If arrays do not belong together, a position is off the
        lattice, tokens do not fit into the capacity, or a length or a capture
        is out of its range.
    """
    return scan(self, self.numerics, carry, x, length, capture_at)

  def cell(
    self, carry: ExplicitCarry, x: Float[Array, "b d"]
  ) -> tuple[ExplicitCarry, Float[Array, "b d"]]:
    """Takes one token of b requests, with the bits of `step`.

    Any position will do. What it leaves off the lattice can be decoded from,
    not scanned from: the next chunk begins at a captured carry.

    Args:
      carry: The carry before the token.
      x: Normalised inputs.

    Returns:
      The carry after it, and the outputs.

    Raises:
      ValueError: If arrays do not belong together, or the capacity is full.
    """
    return cell(self, self.numerics, carry, x)


def empty_carry(
  kept: BranchPools, numerics: Numerics, batch: int, capacity: int | None
) -> ExplicitCarry:
  """Makes the carry of empty requests.

  Args:
    kept: The shapes of one slot and of one page.
    numerics: Gives the tokens of a page and the longest sequence.
    batch: How many requests.
    capacity: Tokens that there is room for; None for `max_length`.

  Raises:
    ValueError: If the batch is no count, or the capacity is out of its range.
  """
  if not is_int(batch) or not 1 <= batch <= MOST:
    raise ValueError(f"batch is {brief(batch)}; it must be an int from 1.")
  longest = numerics.max_length
  capacity = longest if capacity is None else capacity
  if not is_int(capacity) or not 1 <= capacity <= longest:
    raise ValueError(
      f"capacity is {brief(capacity)}; it must be an int from 1 to max_length "
      f"= {longest}."
    )
  pages = -(-capacity // numerics.chunk)

  def rows(*axes: int) -> Any:
    return lambda one: jnp.zeros((*axes, *one.shape), one.dtype)

  zeros = kept.map(rows(batch), rows(batch, pages))
  return ExplicitCarry(jnp.zeros(batch, jnp.int32), zeros.slots, zeros.pages)


def scan(
  module: Any,
  numerics: Numerics,
  carry: ExplicitCarry,
  x: Float[Array, "b t d"],
  length: Lengths | None = None,
  capture_at: Captures = (),
) -> ExplicitScan:
  """`ExplicitModule.scan` of any module with a packed form.

  Args:
    module: A tree of arrays, called as `SublayerModule` is.
    numerics: How it is computed.
    carry: As in `ExplicitModule.scan`.
    x: As in `ExplicitModule.scan`.
    length: As in `ExplicitModule.scan`.
    capture_at: As in `ExplicitModule.scan`.
  """
  check_undivided(jax.tree.leaves(module))
  _check_carry(carry)
  check_axes(
    "scan", x=(x, "b t d"), **{"carry.position": (carry.position, "b")}
  )
  _check_given(carry, x, numerics)
  t, c = x.shape[1], numerics.chunk
  length = jnp.full(len(x), t, jnp.int32) if length is None else length
  length = widened(numbers("length", length))
  check_axes("scan", x=(x, "b t d"), length=(length, "b"))
  capture_at = as_captures(capture_at)
  check_scan(carry, length, t, c)
  # Before anything is added to it: what is narrow cannot tell any room.
  carry = carry._replace(position=widened(carry.position))
  at = check_lattice_captures(capture_at, t, c)
  counts = carry.position, length.astype(jnp.int32), at
  pools = BranchPools(carry.slots, carry.pages)
  # Outside of the program: where nothing else is compiled around it, prompts
  # of as many chunks share one.
  x = jnp.pad(x, ((0, 0), (0, -t % c), (0, 0)))
  out = run_scan(module, pools, x, counts, numerics=numerics)
  allowed = (length >= 0) & (length <= t) & (carry.position >= 0)
  allowed &= (carry.position % c == 0) | (length == 0)
  allowed &= carry.position + length <= _capacity(carry, c)
  shown = out.y[:, :t], out.slots, out.captured
  y, slots, captured = _allow(allowed, shown)
  captured = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), captured)
  if isinstance(capture_at, core.Tracer):
    captured = _allow(are_lattice_captures(at, t, c), captured)
  after = ExplicitCarry(carry.position + counts[1], slots, out.pages)
  return ExplicitScan(after, y, captured)


def cell(
  module: Any, numerics: Numerics, carry: ExplicitCarry, x: Float[Array, "b d"]
) -> tuple[ExplicitCarry, Float[Array, "b d"]]:
  """`ExplicitModule.cell` of any module with a `step`.

  Args:
    module: A tree of arrays, with the `step` of `SublayerModule`.
    numerics: How it is computed.
    carry: As in `ExplicitModule.cell`.
    x: As in `ExplicitModule.cell`.
  """
  check_undivided(jax.tree.leaves(module))
  _check_carry(carry)
  check_axes("cell", x=(x, "b d"), **{"carry.position": (carry.position, "b")})
  _check_given(carry, x, numerics)
  values = concrete("carry.position", carry.position)
  carry = carry._replace(position=widened(carry.position))
  room = _capacity(carry, numerics.chunk)
  if values is not None:
    _check_not_below_0(values)
  if values is not None and (values >= room).any():
    raise ValueError(
      f"carry.position holds {values.max()}; there is room for {room} tokens."
    )
  pools = BranchPools(carry.slots, carry.pages)
  out = run_cell(module, pools, x, carry.position, numerics=numerics)
  allowed = (carry.position >= 0) & (carry.position < room)
  y, slots = _allow(allowed, (out.y, out.slots))
  return ExplicitCarry(carry.position + 1, slots, out.pages), y


def _check_carry(carry: ExplicitCarry) -> None:
  """Refuses what is no carry, such as the state of a layer alone."""
  if not isinstance(carry, ExplicitCarry):
    raise ValueError(
      f"carry is {type(carry).__name__}; it must be an ExplicitCarry, of "
      "`initialize_carry`, `scan` or `cell`."
    )


def _check_not_below_0(position: np.ndarray) -> None:
  """Refuses positions before the first token."""
  if (position < 0).any():
    raise ValueError(
      f"carry.position holds {position.min()}; it must be at least 0."
    )


def _check_given(carry: ExplicitCarry, x: Array, numerics: Numerics) -> None:
  """Refuses a carry of other requests, and inputs of another dtype."""
  for leaf in jax.tree.leaves((carry.slots, carry.pages)):
    check_array("the carry", "a leaf", leaf)
    if leaf.shape[:1] != x.shape[:1]:
      raise ValueError(
        f"carry holds an array of shape {leaf.shape}; x has {len(x)} requests."
      )
  if x.dtype != jnp.dtype(numerics.dtype):
    raise ValueError(
      f"x has dtype {x.dtype}; it must be {numerics.dtype}, that of numerics."
    )


def check_kept(carry: ExplicitCarry, kept: BranchPools) -> None:
  """Refuses the carry of another model, or a part of one.

  Args:
    carry: What to look at.
    kept: Shapes of one slot and one page.

  Raises:
    ValueError: If it is no carry, or has other arrays.
  """
  _check_carry(carry)
  pools = BranchPools(carry.slots, carry.pages)
  # States of two kinds of layers are equal as tuples where their shapes are.
  same = jax.tree.structure(pools) == jax.tree.structure(kept)
  if not same or pools.map(_kind(1), _kind(2)) != kept.map(_kind(), _kind()):
    raise ValueError(
      "carry has the arrays of another model; it must be of this one's "
      "`initialize_carry`, `scan` or `cell`."
    )


def _kind(axes: int = 0) -> Callable[[Any], Any]:
  """What a leaf is past its first axes; None of what is no array."""
  return lambda x: hasattr(x, "dtype") and (x.shape[axes:], x.dtype.name)


def _capacity(carry: ExplicitCarry, chunk: int) -> int:
  """Tokens that the pages of a request have room for; no pages, no end."""
  pages = jax.tree.leaves(carry.pages)
  return pages[0].shape[1] * chunk if pages else np.iinfo(np.int32).max


def check_scan(
  carry: ExplicitCarry, length: Array, tokens: int, chunk: int
) -> None:
  """Refuses positions and lengths whose values are known and wrong.

  Args:
    carry: What a scan begins from.
    length: Tokens of each request.
    tokens: The most that there are.
    chunk: Tokens of a chunk.

  Raises:
    ValueError: If it is no carry, or of other requests, or a number is out of
      range, off the lattice or beyond the room.
  """
  _check_carry(carry)
  batch = {"carry.position": (carry.position, "b"), "length": (length, "b")}
  check_axes("scan", **batch)
  position = concrete("carry.position", carry.position)
  lengths, room = concrete("length", length), _capacity(carry, chunk)
  if lengths is None:
    return
  wrong = lengths[(lengths < 0) | (lengths > tokens)]
  if wrong.size:
    raise ValueError(f"length holds {wrong[0]}; it must be 0 to {tokens}.")
  if position is None:
    return
  _check_not_below_0(position)
  off = position[(position % chunk > 0) & (lengths > 0)]
  if off.size:
    raise ValueError(
      f"carry.position holds {off[0]}; a scan begins at a multiple of {chunk}: "
      "take single tokens from here, or scan from a captured carry."
    )
  end = (position.astype(np.int64) + lengths).max()
  if end > room:
    raise ValueError(
      f"the tokens reach to {end}; the carry has room for {room}."
    )


def _allow(allowed: Array, tree: Any) -> Any:
  """Makes NaN of requests that could not be refused, and changes no other."""

  def leaf(x: Array) -> Array:
    condition = allowed.reshape((-1,) + (1,) * (x.ndim - 1))
    # A number, no array: `jax_debug_nans` would stop at an array of NaN.
    return jnp.where(condition, x, jnp.nan)

  return jax.tree.map(leaf, tree)
