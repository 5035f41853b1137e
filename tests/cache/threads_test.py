"""Several threads on one cache: every result comes, and has its bits."""

import concurrent.futures
import functools

import numpy as np
import pytest

from sparse_prefix_jax import decode, prefill
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.placement import PlacementPolicy
from tests.models_for_tests import cold_runs, small_model

THREADS = 8
DOCUMENTS = [
  np.random.default_rng(seed).integers(0, 512, 60).astype(np.int32)
  for seed in range(4)
]


def calls_of(cache, thread, calls):
  """So many: a prompt, a token after it, and so on; their differing bits."""
  random, bits, model = np.random.default_rng(thread), [], small_model()
  while len(bits) < calls:
    prompt = np.append(DOCUMENTS[random.integers(4)], random.integers(8))
    prompt = prompt.astype(np.int32)
    out = prefill(model, cache, [prompt])
    bits.append(differing_bits(out.logits[0], expected()[prompt.tobytes()][0]))
    out = decode(model, cache, out.sequences, [7])
    bits.append(differing_bits(out.logits[0], expected()[prompt.tobytes()][1]))
    cache.release(out.sequences)
  return bits


@functools.cache
def expected():
  """Cold logits of every prompt that a thread may ask, before any begins."""
  found = {}
  for document in DOCUMENTS:
    for last in range(8):
      prompt = np.append(document, last).astype(np.int32)
      longer = np.append(prompt, 7).astype(np.int32)
      cold = cold_runs().prefill(prompt).logits[-1]
      found[prompt.tobytes()] = cold, cold_runs().decode(longer, prompt.size)
  return found


@pytest.mark.parametrize(
  "calls", [40, pytest.param(200, marks=pytest.mark.slow)]
)
def test_all_results_come_and_have_their_bits(calls):
  placement = PlacementPolicy("block", budget=16, chunk=16)
  expected()
  cache = cold_runs().cache(placement)
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    results = list(
      pool.map(lambda t: calls_of(cache, t, calls), range(THREADS))
    )
  assert [len(bits) for bits in results] == [calls] * THREADS
  assert sum(map(sum, results)) == 0
  cache.audit()
  assert cache.sequences == ()
  assert cache.stats().requests == THREADS * calls // 2
