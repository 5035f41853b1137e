"""Statistics of overlap depths: what `solve_placement` takes as weights.

A histogram is a pure pytree, so that it can live inside a `jit`ted server step,
be mapped over many prefixes and be saved with everything else. Three ways to
re-plan from it (`planner.Planner` does all three on the host):

* *frozen*: observe a warm-up with `decay=1.0`, solve once, keep the plan;
* *periodic*: observe with `decay=1.0`, and solve again every few requests;
* *decaying*: observe with `decay < 1`, and solve again every few requests; old
  traffic fades with a half-life of `log(1/2) / log(decay)` requests (69 at
  0.99, the paper's), so that the plan follows traffic that changes.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Integer

from sparse_prefix_jax.placement.inputs import is_concrete


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["counts", "observations"],
  meta_fields=[],
)
@dataclass(frozen=True)
class OverlapHistogram:
  """Decayed counts of overlap depths.

  Attributes:
    counts: float32 [N], index = overlap depth in bins.
    observations: int32, how many depths were observed, undecayed.
  """

  counts: Float32[Array, "*batch N"]
  observations: Int[Array, "*batch"]

  @classmethod
  def create(cls, depths: int) -> "OverlapHistogram":
    """An empty histogram.

    Args:
      depths: number of depth bins N, at least 2.

    Raises:
      ValueError: fewer than two depths.

    >>> OverlapHistogram.create(3).counts.tolist()
    [0.0, 0.0, 0.0]
    """
    if depths < 2:
      raise ValueError(f"depths must be at least 2, got {depths}")
    return cls(
      counts=jnp.zeros((depths,), jnp.float32),
      observations=jnp.zeros((), jnp.int32),
    )

  def smoothed(self, pseudo_count: float) -> "OverlapHistogram":
    """The histogram with `pseudo_count` spread evenly over all depths.

    A plan from few observations then does not bet on exactly those depths.

    Args:
      pseudo_count: observations that the uniform prior is worth, >= 0.

    Raises:
      ValueError: pseudo_count is negative or not finite.

    >>> OverlapHistogram.create(4).smoothed(2.0).counts.tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    if not (np.isfinite(pseudo_count) and pseudo_count >= 0):
      raise ValueError(
        f"pseudo_count must be finite and not negative, got {pseudo_count}"
      )
    share = jnp.float32(pseudo_count / self.counts.shape[-1])
    return OverlapHistogram(self.counts + share, self.observations)

  def weights(self) -> Float32[Array, "*batch N"]:
    """Counts divided by their sum; all zero where nothing was observed.

    >>> observe(OverlapHistogram.create(3), 2).weights().tolist()
    [0.0, 0.0, 1.0]
    """
    total = jnp.sum(self.counts, axis=-1, keepdims=True)
    return self.counts / jnp.where(total > 0, total, jnp.ones_like(total))


def observe(
  histogram: OverlapHistogram,
  depth: int | Integer[Array, ""],
  decay: float | Float32[Array, ""] = 0.99,
) -> OverlapHistogram:
  """Counts one overlap depth: `counts * decay`, then 1 more at `depth`.

  Args:
    histogram: the statistics so far.
    depth: overlap of a request in bins; misses count, at 0. Deeper than the
      last bin counts in the last bin, also beyond int32. Traced negative
      depths count as 0.
    decay: what is left of every earlier count, in (0, 1]. With 1 a bin stops
      at 2**24 (16,777,216) counts, where float32 no longer adds 1; longer
      streams need a decay such as 0.999999.

  Returns:
    The new histogram.

  Raises:
    ValueError: a concrete depth that is negative or decay outside (0, 1].

  >>> h = observe(OverlapHistogram.create(3), 1)
  >>> observe(h, 2, decay=0.5).counts.tolist()
  [0.0, 0.5, 1.0]
  """
  if is_concrete(depth) and int(depth) < 0:
    raise ValueError(f"depth must not be negative, got {int(depth)}")
  if is_concrete(decay) and not 0 < float(decay) <= 1:
    raise ValueError(f"decay must be in (0, 1], got {float(decay)}")
  last = histogram.counts.shape[-1] - 1
  if is_concrete(depth):
    depth = min(int(depth), last)
  where = jnp.asarray(depth)
  # Clipped in its own type, which int32 may not hold (nor it the last bin).
  last = min(last, jnp.iinfo(where.dtype).max)
  where = jnp.clip(where, 0, last).astype(jnp.int32)
  counts = histogram.counts * jnp.asarray(decay, jnp.float32)
  return OverlapHistogram(
    counts=counts.at[where].add(jnp.float32(1.0)),
    observations=histogram.observations + jnp.int32(1),
  )
