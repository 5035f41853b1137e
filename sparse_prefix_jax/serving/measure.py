"""What prefill costs on this machine: cold prefills, timed, and their fit."""

import time
from collections.abc import Sequence

import numpy as np

from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import listed
from sparse_prefix_jax.kinds import brief, check_class
from sparse_prefix_jax.models.cost import PrefillCost
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.serving.prefill import prefill
from sparse_prefix_jax.whole_numbers import check_at_least, check_whole


def measure_prefill(
  model: HybridDecoder, lengths: Sequence[int], *, repeats: int = 3
) -> PrefillCost:
  """Seconds of cold prefills on this machine, fitted by F.

  The fit minimises relative errors over the fastest of `repeats` runs per
  length, with no negative coefficient.

  Args:
    model: What to measure.
    lengths: At least two lengths in tokens, up to the model's max_length.
    repeats: Timed runs per length, after one that compiles.

  Raises:
    ValueError: If there are fewer than two lengths or no repeats, or an
      argument is of another kind.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, preset
    >>> config = preset("tiny", ladder=(1,), max_length=256)
    >>> model = HybridDecoder(config, rngs=nnx.Rngs(0))
    >>> measure_prefill(model, [64, 128], repeats=1).unit
    'seconds'
  """
  check_class("model", model, HybridDecoder)
  most = model.config.numerics.max_length
  lengths = [
    check_at_least("lengths: a length", length, 1, most)
    for length in listed(lengths) or ()
  ]
  repeats = check_whole("repeats", repeats)
  if len(set(lengths)) < 2 or repeats < 1:
    raise ValueError(
      f"lengths is {lengths} and repeats {brief(repeats)}; at least two "
      "lengths and one repeat are needed."
    )
  longest = -(-max(lengths) // model.config.numerics.chunk)
  room = 4 * (state_bytes(model.config) + longest * page_bytes(model.config))
  cache = PrefixCache(model, capacity=2 * room, placement="no_cache")
  seconds = [_fastest(model, cache, length, repeats) for length in lengths]
  return _fit(np.asarray(lengths, np.float64), np.asarray(seconds))


def _fastest(
  model: HybridDecoder, cache: PrefixCache, length: int, repeats: int
) -> float:
  tokens = np.arange(length) % model.config.vocab_size
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    out = prefill(model, cache, [tokens])
    times.append(time.perf_counter() - start)
    cache.release(out.sequences)
  return min(times[1:])


def _fit(lengths: np.ndarray, seconds: np.ndarray) -> PrefillCost:
  """Least squares of relative errors; a negative coefficient becomes 0."""
  columns = np.stack([lengths, lengths**2], axis=1) / seconds[:, None]
  linear, quadratic = np.linalg.lstsq(columns, np.ones(len(lengths)))[0]
  if quadratic < 0 or linear < 0:
    kept = 0 if quadratic < 0 else 1
    column = columns[:, kept]
    only = float(column.sum() / (column @ column))
    linear, quadratic = (only, 0.0) if kept == 0 else (0.0, only)
  return PrefillCost(float(linear), float(quadratic), "seconds")
