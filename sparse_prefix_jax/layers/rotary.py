"""Partial rotary embedding of absolute positions."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.layers.choices import check_names, check_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """How frequencies are scaled for contexts longer than the trained one.

  Only scalings that depend on the position alone exist: the angle of a token is
  the same however long its sequence becomes.

  Attributes:
    kind: "linear" divides every frequency by `factor`; "yarn" those that turn
      seldom in the original context, none that turn often, and blends between
      (Peng et al., 2023).
    factor: What frequencies are divided by.
    original_length: Yarn: the trained context in tokens.
    attention_factor: What cosines and sines are multiplied by.
    beta_fast: Yarn: turns in the original context from which a frequency stays
      as it is.
    beta_slow: Yarn: turns up to which it is divided.
    truncate: Yarn: whether the channels of these two are rounded outwards.

  Raises:
    ValueError: If a field has another type or is out of its range.

  Example:
    >>> RopeScaling(kind="linear", factor=4.0).attention_factor
    1.0
  """

  kind: str
  factor: float
  original_length: int = 32768
  attention_factor: float = 1.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True

  def __post_init__(self) -> None:
    """Refuses what makes no angles.

    Raises:
      ValueError: Naming the field, its value and what is allowed.
    """
    check_values(self)
    check_names(self, {"kind": ("linear", "yarn")})
    if self.beta_fast < self.beta_slow:
      raise ValueError(
        f"beta_fast is {self.beta_fast}; it must be at least "
        f"beta_slow = {self.beta_slow}."
      )


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
  """Computes 0.1 weight ln(factor) + 1, yarn's temperature of attention.

  Args:
    factor: What frequencies are divided by; up to 1 there is no temperature.
    weight: How much of it (`mscale` in some configurations).

  Example:
    >>> round(yarn_attention_factor(4.0), 4)
    1.1386
  """
  return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def rotate(
  x: Float[Array, "rows h k"],
  position: Int32[Array, "rows"],
  rotary_width: int,
  theta: float,
  scaling: RopeScaling | None = None,
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
    scaling: How frequencies are scaled; None leaves them.

  Returns:
    The rotated x, in its dtype.
  """
  half = rotary_width // 2
  exponent = jnp.arange(half, dtype=jnp.float32) * (2.0 / rotary_width)
  frequency = 1.0 / (theta**exponent)
  if scaling is not None:
    frequency = _scaled(frequency, rotary_width, theta, scaling)
  angle = position.astype(jnp.float32)[:, None] * frequency[None]
  cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
  if scaling is not None:
    cos, sin = (scaling.attention_factor * u for u in (cos, sin))
  first, second, rest = jnp.split(
    x.astype(jnp.float32), [half, rotary_width], axis=-1
  )
  rotated = (first * cos - second * sin, second * cos + first * sin, rest)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _scaled(
  frequency: Float32[Array, "half"],
  rotary_width: int,
  theta: float,
  scaling: RopeScaling,
) -> Float32[Array, "half"]:
  """Divides frequencies by the factor: all of them, or yarn's share of each."""
  slow = frequency / scaling.factor
  if scaling.kind == "linear":
    return slow
  low, high = (
    _channel(turns, rotary_width, theta, scaling)
    for turns in (scaling.beta_fast, scaling.beta_slow)
  )
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rotary_width - 1)
  high += 0.001 if low == high else 0  # a step has no slope
  ramp = (np.arange(rotary_width // 2) - low) / (high - low)
  share = jnp.asarray(np.clip(ramp, 0, 1), jnp.float32)
  return slow * share + frequency * (1.0 - share)


def _channel(
  turns: float, rotary_width: int, theta: float, scaling: RopeScaling
) -> float:
  """The channel, a real number, that turns so often in the original context."""
  length = scaling.original_length / (turns * 2 * math.pi)
  return rotary_width * math.log(length) / (2 * math.log(theta))
