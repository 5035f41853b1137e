"""Serves a stream under one strategy and notes what it took."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.cache.index import Stats
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.decode import decode
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.prefill import prefill

CAPACITY = 64 << 20
"""Bytes of every cache: nothing is evicted, so that strategies differ in their
states alone; and one size of the pools is one set of compiled programs."""

DECODED = 3
"""Tokens decoded greedily after each prompt."""


class Served(NamedTuple):
  """One request.

  Attributes:
    logits: of the prompt's last token and of each decoded token, float32
      [1 + DECODED, vocab].
    seconds: until the first of them was on the host.
    recomputed: tokens that prefill computed.
    states: states that the request's entry keeps.
    held: what the cache held at its fullest, running sequence included.
  """

  logits: np.ndarray
  seconds: float
  recomputed: int
  states: int
  held: Stats


def serve(
  model: HybridDecoder,
  policy: PlacementPolicy,
  prompts: Sequence[np.ndarray],
  *,
  advance: Callable[[], object] = lambda: None,
) -> list[Served]:
  """Serves prompts one after another with a new cache.

  Args:
    model: the model.
    policy: where entries keep states; learns in the order of serving.
    prompts: int32 [t] token ids each.
    advance: called after each request, for a progress bar.

  Returns:
    What each request gave and took.

  Raises:
    ValueError: a prompt that the model or the capacity has no room for.
  """
  cache = PrefixCache(model, capacity=CAPACITY, placement=policy)
  served = []
  for prompt in prompts:
    served.append(_serve_one(model, cache, prompt))
    advance()
  return served


def _serve_one(
  model: HybridDecoder, cache: PrefixCache, prompt: np.ndarray
) -> Served:
  """Prefill, a few greedy tokens, release."""
  start = time.perf_counter()
  out = prefill(model, cache, [prompt])
  seconds = time.perf_counter() - start
  entry = cache.running(out.sequences[0]).entry
  states = len(entry.claims) if entry else 0
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


def differing_bits(ours: Sequence[Served], reference: Sequence[Served]) -> int:
  """Bits in which the logits of two runs over the same stream differ."""
  return sum(
    int(
      np.bitwise_count(
        a.logits.view(np.uint32) ^ b.logits.view(np.uint32)
      ).sum()
    )
    for a, b in zip(ours, reference, strict=True)
  )
