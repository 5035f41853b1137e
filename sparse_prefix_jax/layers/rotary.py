"""Partial rotary embedding of absolute positions."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def rotate(
  x: Float[Array, "rows h k"],
  position: Int32[Array, "rows"],
  rotary_width: int,
  theta: float,
) -> Float[Array, "rows h k"]:
  """Rotates the first `rotary_width` channels by angles of float32.

  Channel i of the first half pairs with channel i of the second half:
  (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), at the angle
  position / theta^(2 i / rotary_width). Positions are absolute, so a token has
  one angle however it was reached; scalings that depend on the total length do
  not exist here.

  Args:
    x: Queries or keys of some heads.
    position: Absolute positions.
    rotary_width: Even number of channels to rotate; the rest passes.
    theta: Base of the frequencies.

  Returns:
    The rotated x, in its dtype.
  """
  half = rotary_width // 2
  exponent = jnp.arange(half, dtype=jnp.float32) * (2.0 / rotary_width)
  frequency = 1.0 / (theta**exponent)
  angle = position.astype(jnp.float32)[:, None] * frequency[None]
  cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
  first, second, rest = jnp.split(
    x.astype(jnp.float32), [half, rotary_width], axis=-1
  )
  rotated = (first * cos - second * sin, second * cos + first * sin, rest)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
