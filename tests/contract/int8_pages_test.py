"""Path independence with keys and values in int8, and what would lose it."""

import collections

import jax
import numpy as np
import pytest

from sparse_prefix_jax import PlacementPolicy, PrefixCache, decode, prefill
from sparse_prefix_jax.contract import (
  ColdRuns,
  Schedule,
  Traffic,
  check,
  differing_bits,
  poison,
)
from sparse_prefix_jax.contract.traffic import Answers
from sparse_prefix_jax.kernels.lattice_attention import int8_xla, xla
from sparse_prefix_jax.kernels.lattice_attention.int8_pages import dequantise
from tests.models_for_tests import LONGEST, cold_runs, small_model

DTYPES = "float32", "bfloat16"
CHUNK = 16
PROMPT, TURN = 40, 30


def int8_model(**changes):
  return small_model(page_dtype="int8", **changes)


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


# Schedules below find what the layers alone show here.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_layer_breaks_a_rule(dtype):
  assert check(int8_model(dtype=dtype), lives=0) == ()


# In float32 a second turn below shows what schedules find.
@pytest.mark.parametrize(
  "dtype",
  [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"],
)
def test_random_schedules_differ_in_no_bit(dtype):
  cold, compared = cold_runs(page_dtype="int8", dtype=dtype), 0
  for seed in range(6):
    schedule = Schedule(cold, seed, longest=LONGEST)
    assert schedule.run() == 0
    compared += schedule.compared
  assert compared > 3e5


def crowded(answers, seed):
  random = np.random.default_rng(seed)
  return Traffic(answers, lambda low, high: int(random.integers(low, high + 1)))


def test_crowded_traffic_swaps_drops_and_forks():
  answers = Answers(cold_runs(page_dtype="int8"), seed=0, longest=LONGEST)
  counts = collections.Counter()
  for seed in (9, 12):
    traffic = crowded(answers, seed)
    assert traffic.run() == 0
    counts += traffic.scheduler.counts
  assert min(counts[what] for what in ("swapped_out", "dropped", "forked")) > 0


def second_turn(model):
  """Bits that differ in a longer prompt, and in the decoding before it."""
  tokens, cold = random_tokens(90), ColdRuns(model, longest=LONGEST)
  policy = PlacementPolicy("block", budget=CHUNK, chunk=CHUNK)
  cache, decoded = cold.cache(policy), 0
  sequences = prefill(model, cache, [tokens[:PROMPT]]).sequences
  for end in range(PROMPT, PROMPT + TURN):
    poison(cache)
    out = decode(model, cache, sequences, tokens[end : end + 1])
    sequences = out.sequences
    expected = cold.decode(tokens[: end + 1], PROMPT)
    decoded += differing_bits(out.logits[0], expected)
  cache.release(sequences)
  poison(cache)
  out = prefill(model, cache, [tokens], all_logits=True)
  resumed = out.reports[0].resumed
  assert resumed == (PROMPT + TURN) // CHUNK * CHUNK
  expected = cold.prefill(tokens).logits[resumed:]
  return differing_bits(out.logits[0], expected), decoded


@pytest.mark.parametrize("dtype", DTYPES)
def test_second_turn_differs_in_no_bit(dtype):
  """The prompt, decoding through two lattice points, and what goes on."""
  assert second_turn(int8_model(dtype=dtype)) == (0, 0)


# What is not kept of a page, below, is seen by the same comparison.
@pytest.mark.slow
def test_exact_pages_in_the_group_that_completes_them_are_seen(monkeypatch):
  attend = int8_xla.attend_chunks

  def exact_within_group(q, k, v, running, pages, chunks, table, **options):
    scales = pages.key_scales, pages.value_scales
    pools = tuple(dequantise(x, s, k.dtype) for x, s in zip(pages[:2], scales))
    static = xla.AttentionOptions(**options)
    out, _ = xla.attend_chunks(q, (k, v), pools, chunks, table, static)
    return out, *attend(q, k, v, running, pages, chunks, table, **options)[1:]

  monkeypatch.setattr(int8_xla, "attend_chunks", exact_within_group)
  # A configuration of its own: programs are compiled once for each.
  resumed, _ = second_turn(int8_model(max_length=272))
  assert resumed > 0


def test_a_running_page_that_is_not_kept_is_seen(monkeypatch):
  def forgotten(running, read, offset, tokens):
    return with_tokens(running, read, offset * 0, tokens)

  with_tokens = int8_xla._with_tokens
  exact = decoded_logits(int8_model())
  monkeypatch.setattr(int8_xla, "_with_tokens", forgotten)
  assert differing_bits(decoded_logits(int8_model(max_length=288)), exact) > 0


def decoded_logits(model):
  """Logits of two steps after a prompt that ends within a chunk."""
  cache, tokens = PrefixCache(model, capacity=1 << 20), random_tokens(42)
  sequences, logits = prefill(model, cache, [tokens[:40]]).sequences, []
  for token in tokens[40:]:
    out = decode(model, cache, sequences, [int(token)])
    logits, sequences = [*logits, out.logits[0]], out.sequences
  return np.stack(logits)


def test_a_cache_of_exact_pages_refuses_a_model_with_others():
  cache, model = PrefixCache(small_model(), capacity=1 << 20), int8_model()
  message = "numerics.page_dtype = 'int8' instead of None"
  with pytest.raises(ValueError, match=message):
    prefill(model, cache, [[1, 2, 3]])


def test_the_same_capacity_holds_more_pages():
  capacity = 300 << 10

  def pages_of(model):
    cache = PrefixCache(model, capacity=capacity, state_share=0.3)
    assert sum(x.nbytes for x in jax.tree.leaves(cache.pools)) <= capacity
    return cache.store.index.budget.pages

  assert pages_of(int8_model()) > 3.5 * pages_of(small_model())
