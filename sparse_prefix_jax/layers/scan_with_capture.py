"""A scan that hands out the carry at chosen steps, for any cell."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jaxtyping import Array, Int32

from sparse_prefix_jax.kernels import chunks as packed


class CapturedScan(NamedTuple):
  """Result of `scan_with_capture`.

  Attributes:
    carry: After the last step.
    ys: Outputs of every step. [t ...]
    captured: Carries after `capture_at[i]` steps. [m ...]
  """

  carry: Any
  ys: Any
  captured: Any


def scan_with_capture(
  cell: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  xs: Any,
  capture_at: Sequence[int] | np.ndarray | Int32[Array, "m"],
) -> CapturedScan:
  """`lax.scan` that also returns the carry after chosen numbers of steps.

  The carries are copied out of the only pass; the cell has a barrier on both
  sides, so capturing changes no bit of carry and ys, and resuming from a
  captured carry continues with the same bits. It differentiates like
  `lax.scan`, through captured carries too. Memory: the m carries, never one
  per step.

  Args:
    cell: `(carry, x) -> (carry, y)`, as in `lax.scan`.
    carry: The initial carry, a tree of arrays.
    xs: A tree of arrays [t ...].
    capture_at: Numbers of steps, each in 1..t, distinct; traced values are
      allowed and are then not checked (one outside 1..t captures zeros).

  Returns:
    The final carry, the outputs and the captured carries, in the order asked.

  Raises:
    ValueError: If a concrete position is past the end, below 1 or repeated.

  Example:
    >>> import jax.numpy as jnp
    >>> cell = lambda carry, x: (carry + x, carry * x)
    >>> out = scan_with_capture(cell, jnp.float32(0), jnp.arange(4.0), (2, 3))
    >>> out.carry.item(), out.captured.tolist()
    (6.0, [1.0, 3.0])
  """
  steps = jax.tree.leaves(xs)[0].shape[0]
  capture_at = _checked(capture_at, steps)

  def body(loop: Any, step: tuple[Any, Array, Array]) -> tuple[Any, Any]:
    carry, captured = loop
    x, write, real = step
    carry, x = lax.optimization_barrier((carry, x))
    advanced, y = lax.optimization_barrier(cell(carry, x))
    carry = packed.select(real, advanced, carry)
    return (carry, packed.capture(captured, write, carry)), y

  # One slot at least, so that there is one body whatever is asked.
  slots, asked = max(capture_at.size, 1), capture_at.size
  captured = jax.tree.map(
    lambda leaf: jnp.zeros((slots, *jnp.shape(leaf)), leaf.dtype), carry
  )
  here = capture_at[None, :] == jnp.arange(1, steps + 1)[:, None]
  write = jnp.full(steps, packed.NONE)
  if asked:
    write = jnp.where(here.any(axis=1), here.argmax(axis=1), packed.NONE)
  xs, write = packed.two_steps((xs, write))
  real = jnp.arange(write.size) < steps
  write = jnp.where(real, write, packed.NONE)
  scanned = lax.scan(body, (carry, captured), (xs, write, real))
  (carry, captured), ys = scanned
  return CapturedScan(
    carry,
    jax.tree.map(lambda y: y[:steps], ys),
    jax.tree.map(lambda x: x[:asked], captured),
  )


def _checked(capture_at: Any, steps: int) -> Int32[Array, "m"]:
  """Positions as an array; concrete ones are checked."""
  if not isinstance(capture_at, core.Tracer):
    concrete = np.asarray(capture_at, np.int64).reshape(-1)
    outside = concrete[(concrete < 1) | (concrete > steps)]
    if outside.size:
      raise ValueError(
        f"capture_at holds {outside[0]}; positions are numbers of steps from 1 "
        f"to {steps}."
      )
    if np.unique(concrete).size != concrete.size:
      raise ValueError(
        f"capture_at is {concrete.tolist()}; each position may stand once."
      )
    capture_at = concrete
  return jnp.asarray(capture_at, jnp.int32)
