"""Where a scan hands out its carry: what may be asked for."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Bool, Int32

from sparse_prefix_jax.kernels.chunks import Captures


def as_captures(capture_at: Captures) -> Captures:
  """One array of positions that are traced one by one; others as they are.

  A list that enters `jax.jit` as an argument is a list of tracers inside.

  Args:
    capture_at: Numbers of steps.

  Example:
    >>> import jax
    >>> as_captures((64, 128))
    (64, 128)
    >>> jax.jit(lambda *at: as_captures(at))(64, 128).tolist()
    [64, 128]
  """
  several = isinstance(capture_at, list | tuple)
  if several and any(isinstance(at, core.Tracer) for at in capture_at):
    return jnp.stack(capture_at)
  return capture_at


def check_captures(capture_at: Captures, steps: int) -> Int32[Array, "m"]:
  """Numbers of steps as an array; what is not an integer is refused.

  The rank and the dtype are known of traced positions too: a fraction would be
  cut to another step, a mask be taken for steps 0 and 1. Values are checked
  where they are concrete.

  Args:
    capture_at: Distinct numbers of steps, each in 1..steps.
    steps: Number of steps of the scan.

  Raises:
    ValueError: If it is no list of integers, or if a concrete value is outside
      the scan or repeated.
  """
  capture_at = as_captures(capture_at)
  traced = isinstance(capture_at, core.Tracer)
  positions: Any = capture_at if traced else _held(capture_at)
  if positions.ndim != 1:
    raise ValueError(
      f"capture_at has shape {positions.shape}; it must have one axis."
    )
  # NumPy counts durations as integers.
  whole = jnp.issubdtype(positions.dtype, jnp.integer)
  if positions.size and (not whole or positions.dtype.kind == "m"):
    raise ValueError(
      f"capture_at has dtype {positions.dtype}; positions are integers, "
      f"numbers of steps from 1 to {steps}."
    )
  if not traced:
    _check_values(positions, steps)
  return jnp.asarray(positions, jnp.int32)


def _held(capture_at: Any) -> np.ndarray:
  """Known positions on the host; a mask would be lost."""
  if not isinstance(capture_at, np.ma.MaskedArray):
    try:
      return np.asarray(capture_at)
    except (TypeError, ValueError):
      pass
  raise ValueError(
    f"capture_at is a {type(capture_at).__name__} of no numbers; it must be a "
    "list of integers."
  )


def _check_values(positions: np.ndarray, steps: int) -> None:
  """Refuses positions that are outside the scan, or repeated."""
  outside = positions[(positions < 1) | (positions > steps)]
  if outside.size:
    raise ValueError(
      f"capture_at holds {outside[0]}; positions are numbers of steps from 1 "
      f"to {steps}."
    )
  if np.unique(positions).size != positions.size:
    raise ValueError(
      f"capture_at is {positions.tolist()}; each position may stand once."
    )


def check_lattice_captures(
  capture_at: Captures, tokens: int, chunk: int
) -> Int32[Array, "m"]:
  """Numbers of tokens as an array; known ones are lattice points.

  Args:
    capture_at: As in `check_captures`.
    tokens: Number of tokens of the scan.
    chunk: Tokens of a chunk.

  Raises:
    ValueError: As `check_captures`, or if one lies within a chunk.
  """
  at = check_captures(capture_at, tokens)
  if not isinstance(capture_at, core.Tracer):
    values = np.asarray(capture_at)
    off = values[values % chunk > 0]
    if off.size:
      raise ValueError(
        f"capture_at holds {off[0]}; it must be a multiple of {chunk}."
      )
  return at


def are_lattice_captures(
  at: Int32[Array, "m"], tokens: int, chunk: int
) -> Bool[Array, "m"]:
  """Which numbers of tokens would not be refused, were they known.

  Args:
    at: Numbers of tokens.
    tokens: Number of tokens of the scan.
    chunk: Tokens of a chunk.
  """
  once = (at[:, None] == at[None]).sum(1, dtype=jnp.int32) == 1
  return once & (at % chunk == 0) & (at >= 1) & (at <= tokens)
