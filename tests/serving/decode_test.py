"""decode: steps, canonical chunks, forks, the exact form, refusals."""

import numpy as np
import pytest

from sparse_prefix_jax import CapacityError, PrefixCache, decode, prefill
from sparse_prefix_jax.contract import differing_bits, poison
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy
from tests.models_for_tests import (
  cold_capacity,
  cold_runs,
  last_placement,
  small_config,
  small_model,
)

CHUNK = 16


def new_cache(placement="last", **changes):
  policy = PlacementPolicy(placement, chunk=CHUNK)
  fields = {"capacity": cold_capacity(), "placement": policy}
  return PrefixCache(small_model(), **(fields | changes))


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def start(cache, *prompts):
  return prefill(small_model(), cache, prompts).sequences


def advance(cache, sequences, tokens, **arguments):
  poison(cache)
  return decode(small_model(), cache, sequences, tokens, **arguments)


def test_prompt_of_one_token_decodes_through_two_lattice_points():
  tokens, cache = random_tokens(40), new_cache()
  sequences = start(cache, tokens[:1])
  for end in range(1, 40):
    out = advance(cache, sequences, tokens[end : end + 1])
    sequences = out.sequences
    expected = cold_runs().decode(tokens[: end + 1], 1)
    assert differing_bits(out.logits[0], expected) == 0
  assert sequences[0].length == 40


def test_steps_are_close_to_prefill():
  tokens, cache = random_tokens(60), new_cache()
  sequences = start(cache, tokens[:50])
  for end in range(50, 60):
    out = advance(cache, sequences, tokens[end : end + 1])
    sequences = out.sequences
    expected = cold_runs().prefill(tokens[: end + 1]).logits[-1]
    np.testing.assert_allclose(out.logits[0], expected, atol=2e-4)


def test_more_sequences_than_rows_in_any_order():
  config = small_config()
  prompts = [
    random_tokens(17 + i, i) for i in range(config.numerics.decode_rows + 3)
  ]
  cache = new_cache()
  sequences = list(start(cache, *prompts))
  new = random_tokens(len(prompts), 99)
  order = np.random.default_rng(0).permutation(len(prompts))
  out = advance(cache, [sequences[i] for i in order], new[order])
  for row, i in enumerate(order):
    expected = cold_runs().decode(
      np.append(prompts[i], new[i]), prompts[i].size
    )
    assert differing_bits(out.logits[row], expected) == 0


def test_exact_gives_the_bits_of_prefill():
  tokens, cache = random_tokens(70), new_cache()
  sequences = start(cache, tokens[:30])
  for end in range(30, 70):
    out = advance(cache, sequences, tokens[end : end + 1], exact=True)
    sequences = out.sequences
    expected = cold_runs().prefill(tokens[: end + 1]).logits[-1]
    assert differing_bits(out.logits[0], expected) == 0
  cache.release(sequences)
  (report,) = prefill(small_model(), cache, [tokens]).reports
  assert report.resumed == 64


def test_release_stores_the_end_of_the_conversation():
  tokens, cache = random_tokens(100), new_cache()
  sequences = start(cache, tokens[:40])
  for end in range(40, 75):
    sequences = advance(cache, sequences, tokens[end : end + 1]).sequences
  cache.release(sequences)
  assert len(cache.store.index) == 1  # the longer entry supersedes the shorter
  out = prefill(small_model(), cache, [tokens], all_logits=True)
  assert (out.reports[0].overlap, out.reports[0].resumed) == (75, 64)
  expected = cold_runs().prefill(tokens).logits[64:]
  assert differing_bits(out.logits[0], expected) == 0
  assert cache.store.index.stats.leased_slots == 2


@pytest.mark.parametrize("placement", ["last", "no_cache"])
@pytest.mark.parametrize("decoded", [0, 3, 8, 20])
def test_forks_go_their_own_ways(placement, decoded):
  tokens, cache = random_tokens(40 + decoded), new_cache(placement)
  sequences = start(cache, tokens[:40])
  for end in range(40, 40 + decoded):
    sequences = advance(cache, sequences, tokens[end : end + 1]).sequences
  both = [*sequences, cache.fork(sequences[0])]
  pasts = [tokens, tokens]
  for t in range(20):
    new = random_tokens(2, seed=t)
    out = advance(cache, both, new)
    both = list(out.sequences)
    for i in range(2):
      pasts[i] = np.append(pasts[i], new[i])
      expected = cold_runs().decode(pasts[i], 40)
      assert differing_bits(out.logits[i], expected) == 0
  cache.release(both)
  cache.audit()
  stats = cache.store.index.stats
  assert (stats.leased_slots, stats.leased_pages, stats.pins) == (0, 0, 0)
  assert (stats.held_bytes == 0) == (placement == "no_cache")


def assert_refused(
  match, cache, sequences, tokens, error=ValueError, **arguments
):
  before = cache.stats()
  lengths = [sequence.length for sequence in cache.sequences]
  with pytest.raises(error, match=match):
    decode(small_model(), cache, sequences, tokens, **arguments)
  assert cache.stats() == before
  assert [sequence.length for sequence in cache.sequences] == lengths


def test_refusals_change_nothing():
  cache = new_cache()
  old = start(cache, random_tokens(20))
  assert_refused("ids for 1 sequences", cache, old, [1, 2])
  assert_refused("holds id 512", cache, old, [512])
  assert_refused("named twice", cache, old * 2, [1, 2])
  new = advance(cache, old, [5]).sequences
  assert_refused("decoded further, to 21 tokens", cache, old, [1])
  assert_refused("exact=False", cache, new, [1], exact=True)
  cache.release(new)
  assert_refused("was released", cache, new, [1])
  with pytest.raises(ValueError, match="was released"):
    cache.release(new)


def test_longest_sequence_is_refused_a_further_token():
  cache = new_cache()
  sequences = start(cache, random_tokens(256))
  assert_refused("max_length = 256", cache, sequences, [1])


def test_no_page_for_a_new_chunk_changes_nothing():
  config = small_config()
  slots, pages = 2 * state_bytes(config), 2 * page_bytes(config)
  share = (slots + 1) / (slots + pages)
  cache = new_cache("no_cache", capacity=slots + pages, state_share=share)
  sequences = start(cache, random_tokens(32))
  assert_refused("cannot reserve", cache, sequences, [1], error=CapacityError)
  cache.release(sequences)
  assert cache.stats().held_bytes == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_fork_keeps_the_end_of_the_conversation(order):
  tokens, cache = random_tokens(60), new_cache()
  sequences = start(cache, tokens[:40])
  for end in range(40, 55):
    sequences = advance(cache, sequences, tokens[end : end + 1]).sequences
  both = [*sequences, cache.fork(sequences[0])]
  for i in order:
    cache.release([both[i]])
  cache.audit()
  out = prefill(small_model(), cache, [tokens])
  assert (out.reports[0].overlap, out.reports[0].resumed) == (55, 48)
  expected = cold_runs().prefill(tokens).logits[-1]
  assert differing_bits(out.logits[0], expected) == 0


def test_handle_of_another_cache_is_refused():
  first, second = new_cache(), new_cache()
  sequences = start(first, random_tokens(20))
  start(second, random_tokens(20))
  assert_refused("another cache", second, sequences, [1])


def test_more_sequences_than_max_length_is_no_error():
  model = small_model(max_length=16)
  cache = PrefixCache(model, capacity=1 << 21, placement=last_placement())
  sequences = prefill(model, cache, [[i] for i in range(18)]).sequences
  out = decode(model, cache, sequences, list(range(18)))
  assert out.logits.shape == (18, 512)
