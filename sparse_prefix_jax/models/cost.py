"""What prefill costs, cumulated over depth.

Placement minimises sum_t w(t) (F(t) - F(deepest state <= t)); this module makes
F. With recurrent layers alone it is linear, with attention a t + b t^2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.kinds import brief, host_array
from sparse_prefix_jax.models.config import ModelConfig, check_config_kind
from sparse_prefix_jax.whole_numbers import as_float, check_at_least

# Positions of 32 bits: no product of two such numbers is too large.
_MOST = np.iinfo(np.int32).max


class PrefillCost(NamedTuple):
  """The cost F(t) = linear * t + quadratic * t^2 of the first t tokens.

  Attributes:
    linear: Cost per token of everything but attending.
    quadratic: Half the cost of attending to one more token.
    unit: "flops" or "seconds".

  Example:
    >>> PrefillCost(2.0, 0.5, "flops").at([0, 10]).tolist()
    [0.0, 70.0]
  """

  linear: float
  quadratic: float
  unit: str

  def at(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Computes F at these depths in tokens, in float64.

    Raises:
      ValueError: If they are no numbers of at least 0, or one of the cost is
        not finite.
    """
    t = host_array("tokens", tokens)
    numbers = not t.size or t.dtype.kind in "iuf"
    t = t.astype(np.float64) if numbers else np.array(np.nan)
    if not (np.isfinite(t) & (t >= 0)).all():
      raise ValueError(
        f"tokens must be numbers of at least 0, got {brief(tokens)}."
      )
    linear = _finite("linear", self.linear)
    quadratic = _finite("quadratic", self.quadratic)
    return linear * t + quadratic * t * t

  def cumulative(self, depths: int, chunk: int) -> np.ndarray:
    """Computes F at 0, chunk, 2 chunk, ..., as `solve_placement` takes it.

    Args:
      depths: How many of them.
      chunk: Tokens between two depths.

    Returns:
      The `cost` to give to the solver. [depths]

    Raises:
      ValueError: If they are no integers, or too large, or there is no chunk,
        or a number of the cost is not finite.

    Example:
      >>> PrefillCost(2.0, 0.0, "flops").cumulative(3, chunk=64).tolist()
      [0.0, 128.0, 256.0]
    """
    depths = check_at_least("depths", depths, 0, _MOST)
    return self.at(check_at_least("chunk", chunk, 1, _MOST) * np.arange(depths))


def _finite(name: str, value: float) -> float:
  """A number of a cost as a float; what is none is refused."""
  number = as_float(value)
  if not math.isfinite(number):
    raise ValueError(
      f"{name} of a cost is {brief(value)}; it must be a finite number."
    )
  return number


def prefill_flops(config: ModelConfig) -> PrefillCost:
  """Counts the floating point operations of a prefill, without the head.

  A product of a row with [i, o] counts 2 i o. Each sublayer says what it counts
  per token, and per pair of a token and one that it attends to.

  Raises:
    ValueError: If `config` is no `ModelConfig`.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> round(prefill_flops(preset("qwen3_5_0_8b_group")).at([1024])[0] / 1e9)
    182
  """
  check_config_kind(config)
  counts = [
    branch.sub.flops(config.width, config.numerics)
    for branch in config.branches
  ]
  tokens = float(sum(count.token for count in counts))
  pairs = float(sum(count.pair for count in counts))
  # Token t attends to t + 1 tokens, so there are about t^2 / 2 pairs.
  return PrefillCost(tokens, pairs / 2, "flops")
