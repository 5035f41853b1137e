"""Statistics of overlap depths: what `solve_placement` takes as weights.

A histogram is a pure pytree, so that it can live inside a `jit`ted server step,
be mapped over many prefixes and be saved with everything else. Three ways to
re-plan from it (`planner.Planner` does all three, with counts on the host):

* *frozen*: observe a warm-up with `decay=1.0`, solve once, keep the plan;
* *periodic*: observe with `decay=1.0`, and solve again every few requests;
* *decaying*: observe with `decay < 1`, and solve again every few requests; old
  traffic fades with a half-life of `log(1/2) / log(decay)` requests (69 at
  0.99, the paper's), so that the plan follows traffic that changes.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int, Int64, Integer

from sparse_prefix_jax.kinds import brief, check_class, check_flag
from sparse_prefix_jax.placement.inputs import is_concrete
from sparse_prefix_jax.whole_numbers import as_float, check_whole

_TINY = float(np.finfo(np.float32).tiny)


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["counts", "observations"],
  meta_fields=[],
)
@dataclass(frozen=True)
class OverlapHistogram:
  """Counts of overlap depths, of which old ones may fade.

  Attributes:
    counts: float32 [N], index = overlap depth in bins; on the host float64.
    observations: int32, how many depths were observed, undecayed.

  Example:
    >>> histogram = OverlapHistogram.create(4)
    >>> observe(histogram, 2).counts.tolist()
    [0.0, 0.0, 1.0, 0.0]
  """

  counts: Float32[Array, "*batch N"] | Float64[np.ndarray, "N"]
  observations: Int[Array, "*batch"] | Int64[np.ndarray, ""]

  @classmethod
  def create(cls, depths: int, *, on_host: bool = False) -> "OverlapHistogram":
    """Makes an empty histogram.

    Args:
      depths: Number of depth bins N, at least 2.
      on_host: Keep NumPy arrays, the counts in float64, instead of arrays of
        the device. They need no device to be counted, and are not for `jit`.

    Raises:
      ValueError: If there are fewer than two depths.

    >>> OverlapHistogram.create(3).counts.tolist()
    [0.0, 0.0, 0.0]
    """
    check_flag("on_host", on_host)
    depths = check_whole("depths", depths)
    if depths < 2:
      raise ValueError(f"depths must be at least 2, got {depths}")
    if on_host:
      return cls(np.zeros(depths, np.float64), np.zeros((), np.int64))
    return cls(
      counts=jnp.zeros((depths,), jnp.float32),
      observations=jnp.zeros((), jnp.int32),
    )

  def smoothed(self, pseudo_count: float) -> "OverlapHistogram":
    """Returns the histogram with `pseudo_count` spread evenly over all depths.

    A plan from few observations then does not bet on exactly those depths.

    Args:
      pseudo_count: Observations that the uniform prior is worth, >= 0.

    Raises:
      ValueError: If pseudo_count is negative or not finite.

    >>> OverlapHistogram.create(4).smoothed(2.0).counts.tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    if not 0 <= as_float(pseudo_count) < math.inf:
      raise ValueError(
        "pseudo_count must be finite and not negative, got"
        f" {brief(pseudo_count)}"
      )
    share = float(pseudo_count) / self.counts.shape[-1]
    return OverlapHistogram(self.counts + share, self.observations)

  def weights(
    self,
  ) -> Float32[Array, "*batch N"] | Float64[np.ndarray, "N"]:
    """Returns counts divided by their sum, all zero if nothing was observed.

    >>> observe(OverlapHistogram.create(3), 2).weights().tolist()
    [0.0, 0.0, 1.0]
    """
    total = self.counts.sum(axis=-1, keepdims=True)
    # Whatever the sum of nothing is divided by, it stays nothing.
    return self.counts / total.clip(min=_TINY)


def observe(
  histogram: OverlapHistogram,
  depth: int | Integer[Array, ""],
  decay: float | Float32[Array, ""] = 0.99,
) -> OverlapHistogram:
  """Counts one overlap depth: `counts * decay`, then 1 more at `depth`.

  Args:
    histogram: The statistics so far.
    depth: Overlap of a request in bins; misses count, at 0. Deeper than the
      last bin counts in the last bin, also beyond int32. Traced negative
      depths count as 0.
    decay: What is left of every earlier count, in (0, 1]. With 1 a bin stops
      at 2**24 (16,777,216) counts, where float32 no longer adds 1; longer
      streams need a decay such as 0.999999.

  Returns:
    The new histogram.

  Raises:
    ValueError: If it is no histogram, a depth no integer, a concrete one
      negative, a decay outside (0, 1], or if a histogram of the host would
      count what is traced.

  >>> h = observe(OverlapHistogram.create(3), 1)
  >>> observe(h, 2, decay=0.5).counts.tolist()
  [0.0, 0.5, 1.0]
  """
  check_class(
    "histogram", histogram, OverlapHistogram, "of `OverlapHistogram.create`"
  )
  if is_concrete(decay) and not 0 < as_float(decay) <= 1:
    raise ValueError(f"decay must be in (0, 1], got {brief(decay)}")
  counts, last = histogram.counts, histogram.counts.shape[-1] - 1
  depth = _checked_depth(depth, last)
  if isinstance(counts, np.ndarray):
    if not is_concrete(depth, decay):
      raise ValueError("a histogram on the host counts nothing that is traced")
    counts, seen = counts * float(decay), histogram.observations + 1
    counts[int(depth)] += 1.0
    return OverlapHistogram(counts, np.asarray(seen))
  where = jnp.asarray(depth)
  # Clipped in its own type, which int32 may not hold (nor it the last bin).
  last = min(last, jnp.iinfo(where.dtype).max)
  where = jnp.clip(where, 0, last).astype(jnp.int32)
  counts = counts * jnp.asarray(decay, jnp.float32)
  return OverlapHistogram(
    counts=counts.at[where].add(jnp.float32(1.0)),
    observations=histogram.observations + jnp.int32(1),
  )


def _checked_depth(depth: Any, last: int) -> Any:
  """A depth, up to the last bin; of a traced one its kind is known."""
  if is_concrete(depth):
    whole = check_whole("depth", depth)
    if whole < 0:
      raise ValueError(f"depth must not be negative, got {brief(whole)}")
    return min(whole, last)
  if depth.ndim or not jnp.issubdtype(depth.dtype, jnp.integer):
    raise ValueError(f"depth must be an integer, got {depth.aval}")
  return depth
