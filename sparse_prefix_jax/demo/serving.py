"""Serves one request and notes what it gave and what it took."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.cache.counts import StoreStats
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.serving.decode import decode
from sparse_prefix_jax.serving.prefill import prefill

CAPACITY = 48 << 20
"""Bytes of every cache: nothing is evicted, so that strategies differ in their
states alone; and one size of the pools is one set of compiled programs."""

_STATE_SHARE = 0.65  # `sqrt` keeps many states.

DECODED = 3
"""Tokens decoded greedily after each prompt."""


class Served(NamedTuple):
  """What one request gave and took.

  Attributes:
    logits: Those of the prompt's last token and of each decoded token, float32
      [1 + DECODED, vocab].
    seconds: Time until the first of them was on the host.
    recomputed: Tokens that prefill computed.
    states: States that the request's entry keeps.
    held: What the cache held at its fullest, running sequence included.
  """

  logits: np.ndarray
  seconds: float
  recomputed: int
  states: int
  held: StoreStats


def new_cache(model: HybridDecoder, policy: PlacementPolicy) -> PrefixCache:
  """Makes an empty cache, of the one size that all strategies get.

  Args:
    model: The model.
    policy: Where entries keep states; it learns in the order of serving.

  Returns:
    The cache.
  """
  return PrefixCache(
    model, capacity=CAPACITY, placement=policy, state_share=_STATE_SHARE
  )


def serve_prompt(
  model: HybridDecoder, cache: PrefixCache, prompt: np.ndarray
) -> Served:
  """Prefills a prompt, decodes a few tokens greedily and releases.

  Args:
    model: The model.
    cache: The cache that is matched and extended.
    prompt: Token ids, int32 [t].

  Returns:
    What the request gave and took.

  Raises:
    ValueError: If the model or the capacity has no room for the prompt.
  """
  start = time.perf_counter()
  out = prefill(model, cache, [prompt])
  seconds = time.perf_counter() - start
  states = out.reports[0].states
  logits, sequences = [out.logits[0]], out.sequences
  for _ in range(DECODED):
    token = int(np.argmax(logits[-1]))
    step = decode(model, cache, sequences, [token])
    logits.append(step.logits[0])
    sequences = step.sequences
  held = cache.stats()
  cache.release(sequences)
  return Served(
    logits=np.stack(logits),
    seconds=seconds,
    recomputed=out.reports[0].recomputed,
    states=states,
    held=held,
  )


def bits_apart(ours: Sequence[Served], reference: Sequence[Served]) -> int:
  """Counts the bits in which the logits of two runs over a stream differ.

  Args:
    ours: One run.
    reference: The other, as long as the first.

  Returns:
    The number of differing bits, over all requests and all logits.
  """
  return sum(
    differing_bits(a.logits, b.logits)
    for a, b in zip(ours, reference, strict=True)
  )
