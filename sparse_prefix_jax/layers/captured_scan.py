"""A scan that hands out the carry at chosen steps, for any cell."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sparse_prefix_jax.kernels import chunks as packed
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.captures import check_captures
from sparse_prefix_jax.kinds import brief


class CapturedScan(NamedTuple):
  """What `scan_with_capture` returns.

  Attributes:
    carry: The carry after the last step.
    ys: The outputs of every step. [t ...]
    captured: The carries after `capture_at[i]` steps each. [m ...]
  """

  carry: Any
  ys: Any
  captured: Any


def scan_with_capture(
  cell: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  xs: Any,
  capture_at: packed.Captures,
) -> CapturedScan:
  """`lax.scan` that also returns the carry after chosen numbers of steps.

  The carries are copied out of the only pass; the cell has a barrier on both
  sides, so capturing changes no bit of carry and ys, and resuming from a
  captured carry continues with the same bits. It differentiates like
  `lax.scan`, through captured carries too. Memory: the m carries, never one
  per step.

  Args:
    cell: `(carry, x) -> (carry, y)`, as in `lax.scan`.
    carry: The initial carry, a tree of arrays or Python numbers.
    xs: A tree of arrays [t ...], at least one.
    capture_at: Numbers of steps, each in 1..t, distinct; traced values are
      allowed and are then not checked: one outside 1..t captures zeros, and
      of equal ones the first captures and the others hold zeros.

  Returns:
    The final carry, the outputs and the captured carries, in the order asked.

  Raises:
    ValueError: If `capture_at` is no list of integers, if a concrete position
      is past the end, below 1 or repeated, if `xs` holds no array or arrays
      of different lengths, or if carry or `xs` hold what is no number.
    TypeError: As `lax.scan` raises it, of a cell that returns no pair, or a
      carry of another form.

  Example:
    >>> import jax.numpy as jnp
    >>> cell = lambda carry, x: (carry + x, carry * x)
    >>> out = scan_with_capture(cell, jnp.float32(0), jnp.arange(4.0), (2, 3))
    >>> out.carry.item(), out.captured.tolist()
    (6.0, [1.0, 3.0])
  """
  _check_numbers("carry", carry)
  _check_numbers("xs", xs)
  steps = _steps(xs)
  capture_at = check_captures(capture_at, steps)
  carry = _settled(cell, carry, xs)

  def body(loop: Any, step: tuple[Any, Array, Array]) -> tuple[Any, Any]:
    carry, captured = loop
    x, write, real = step
    carry, x = barrier((carry, x))
    advanced, y = barrier(cell(carry, x))
    carry = packed.select(real, advanced, carry)
    return (carry, packed.capture(captured, write, carry)), y

  # One slot at least, so that there is one body whatever is asked.
  slots, asked = max(capture_at.size, 1), capture_at.size
  captured = jax.tree.map(
    lambda leaf: jnp.zeros((slots, *jnp.shape(leaf)), leaf.dtype), carry
  )
  after = jnp.arange(1, steps + 1, dtype=jnp.int32)
  here = capture_at[None, :] == after[:, None]
  write = jnp.full(steps, packed.NONE, jnp.int32)
  if asked:
    slot = lax.argmax(here, 1, jnp.int32)
    write = jnp.where(here.any(axis=1), slot, packed.NONE)
  xs, write = packed.two_steps((xs, write))
  real = jnp.arange(write.size, dtype=jnp.int32) < steps
  write = jnp.where(real, write, packed.NONE)
  scanned = lax.scan(body, (carry, captured), (xs, write, real))
  (carry, captured), ys = scanned
  return CapturedScan(
    carry,
    jax.tree.map(lambda y: y[:steps], ys),
    jax.tree.map(lambda x: x[:asked], captured),
  )


def _check_numbers(name: str, tree: Any) -> None:
  """Refuses a tree with leaves that JAX does not compute with.

  Raises:
    ValueError: Naming the first one.
  """
  for leaf in jax.tree.leaves(tree):
    try:
      jax.eval_shape(lambda x: x, leaf)
    except (TypeError, ValueError, OverflowError):
      raise ValueError(
        f"{name} holds {brief(leaf)}; it must hold arrays or numbers."
      ) from None


def _steps(xs: Any) -> int:
  """The number of steps t, which is the first axis of every array of xs.

  Raises:
    ValueError: Without arrays there is no number of steps; arrays without axes
      or of different lengths have none in common.
  """
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(xs)]
  if not shapes or () in shapes:
    raise ValueError(
      f"xs holds arrays of shapes {shapes}; it must hold at least one, and "
      "each must have an axis of steps."
    )
  lengths = sorted({shape[0] for shape in shapes})
  if len(lengths) > 1:
    raise ValueError(f"xs has {lengths} steps; all arrays must have as many.")
  return lengths[0]


def _settled(cell: Callable[[Any, Any], Any], carry: Any, xs: Any) -> Any:
  """Makes arrays of the carry, of the dtypes that it has after a step.

  A Python number takes the dtype that the cell gives it, as in `lax.scan`; what
  is captured must have it too.
  """
  after = jax.eval_shape(lambda c, x: lax.scan(cell, c, x)[0], carry, xs)
  return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), carry, after)
