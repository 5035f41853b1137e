"""prefill: waves, captures, reports, bad input that changes nothing."""

import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  CapacityError,
  HybridDecoder,
  PrefixCache,
  decode,
  prefill,
)
from sparse_prefix_jax.contract import differing_bits, poison
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime import programs
from tests.models_for_tests import (
  cold_capacity,
  cold_runs,
  last_placement,
  small_config,
  small_model,
)

CHUNK = 16


def new_cache(placement="last", budget=None, **changes):
  policy = PlacementPolicy(placement, budget=budget, chunk=CHUNK)
  fields = {"capacity": cold_capacity(), "placement": policy}
  return PrefixCache(small_model(), **(fields | changes))


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def run(cache, prompts, **arguments):
  """Prefills, checks every bit against cold runs, releases; the reports."""
  poison(cache)
  out = prefill(small_model(), cache, prompts, **arguments)
  for prompt, logits in zip(prompts, out.logits, strict=True):
    assert differing_bits(logits, cold_runs().prefill(prompt).logits[-1]) == 0
  cache.release(out.sequences)
  cache.audit()
  return out.reports


def test_second_request_resumes_from_the_last_lattice_point():
  cache, document = new_cache(), random_tokens(100)
  (first,) = run(cache, [document])
  assert (first.resumed, first.captured) == (0, (96,))
  assert (first.length, first.recomputed, first.reason) == (
    100,
    100,
    "no_overlap",
  )
  (second,) = run(cache, [np.append(document, 7)])
  assert (second.overlap, second.resumed, second.recomputed) == (100, 96, 5)
  assert second.reason == "complete"


@pytest.mark.parametrize("more, resumed", [(-1, 64), (0, 80), (1, 80)])
def test_beside_a_lattice_point(more, resumed):
  document = random_tokens(120)
  cache = new_cache("block", budget=CHUNK)
  run(cache, [document])
  # Of a prompt of exactly 81 tokens the last one has to be computed.
  (report,) = run(cache, [document[: 81 + more]])
  assert report.resumed == resumed
  (again,) = run(cache, [np.append(document[: 80 + more], [1, 2, 3])])
  assert again.resumed == (80 + more) // CHUNK * CHUNK


def test_prompt_equal_to_an_entry():
  cache, prompt = new_cache("block", budget=CHUNK), random_tokens(64)
  run(cache, [prompt])
  (report,) = run(cache, [prompt])
  assert (report.overlap, report.resumed) == (64, 48)
  assert report.reason == "last_token"
  assert len(cache.store.index) == 1


def test_same_prompt_twice_in_one_batch_waits():
  cache, prompt = new_cache(), random_tokens(70)
  first, second = run(cache, [prompt, prompt])
  assert (first.wave, second.wave) == (0, 1)
  assert (first.resumed, second.resumed) == (0, 64)
  assert cache.stats().held_pages == 4


def test_batch_about_one_document_computes_it_once():
  document = random_tokens(100)
  prompts = [np.append(document, random_tokens(9, i)) for i in range(1, 4)]
  reports = run(new_cache(), prompts)
  assert [report.resumed for report in reports] == [0, 96, 96]
  assert 96 in reports[0].captured  # shared, whatever the placement says
  assert [report.wave for report in reports] == [0, 1, 1]


def test_two_prompts_that_end_at_a_lattice_point_share_what_they_can():
  prompt = random_tokens(64)
  _, report = run(new_cache(), [prompt, prompt])
  assert report.resumed == 48


@pytest.mark.parametrize("placement", ["adaptive", "conditional", "last"])
def test_reports_add_up_to_what_the_cache_expected_and_lost(placement):
  """Documents of 76 tokens: 64 can be restored, and 12 by no state."""
  cache = new_cache(placement, budget=1 if placement == "conditional" else None)
  document, reports = random_tokens(76), []
  for number in range(6):
    prompt = np.append(document, random_tokens(20 + number, 1 + number))
    reports += run(cache, [prompt])
  for report in reports:
    known = report.overlap // CHUNK * CHUNK
    assert report.realised_lost == max(known - report.resumed, 0)
    assert report.realised_lost <= report.lost
  if placement != "conditional":  # It has planned before the second one.
    assert (reports[1].realised_lost, reports[1].lost) == (64, 76)
  told = [r for r in reports if r.expected_lost is not None]
  stats = cache.stats()
  if placement == "last":
    assert not told and stats.expected_lost_tokens is None
    return
  assert len(told) > 3
  expected = 0.0
  for report in told:  # `sum` of Python 3.12 adds up with fewer roundings.
    expected += report.expected_lost
  assert expected == stats.expected_lost_tokens
  assert sum(r.realised_lost for r in told) == stats.realised_lost_tokens


def test_unrelated_prompts_share_a_wave_and_a_salt_separates():
  prompts = [random_tokens(50, seed) for seed in range(3)]
  cache = new_cache()
  assert {report.wave for report in run(cache, prompts)} == {0}
  (other,) = run(cache, prompts[:1], salt=b"other tenant")
  assert other.overlap == 0


def test_capture_is_exactly_what_was_asked():
  cache, prompt = new_cache("balanced", budget=3), random_tokens(100)
  (report,) = run(cache, [prompt], capture=[[16, 80]])
  assert report.captured == (16, 80)
  for end, resumed in ((90, 80), (70, 16), (16, 0)):
    (report,) = run(cache, [prompt[:end]], capture=[[]])
    assert report.resumed == resumed
    assert report.captured == ()


def test_anchors_come_on_top_of_the_placement():
  cache, prompt = new_cache(), random_tokens(100)
  (report,) = run(cache, [prompt], anchors=[[37, 90]])
  assert report.captured == (32, 80, 96)


def test_an_anchor_outlives_the_prompt_that_captured_it():
  cache, document = new_cache(eviction="fifo"), random_tokens(90)
  prompts = [np.append(document, random_tokens(30, i)) for i in range(1, 4)]
  for prompt in prompts[:2]:
    out = prefill(small_model(), cache, [prompt], anchors=[[85]])
  cache.release(out.sequences, keep=0)  # the second's own states go
  (report,) = run(cache, prompts[2:], anchors=[[85]])
  assert (report.resumed, report.captured) == (80, (112,))


def test_all_logits_are_those_of_every_computed_token():
  cache, prompt = new_cache(), random_tokens(90)
  expected = cold_runs().prefill(prompt).logits
  out = prefill(small_model(), cache, [prompt[:70]], all_logits=True)
  assert differing_bits(out.logits[0], expected[:70]) == 0
  out = prefill(small_model(), cache, [prompt], all_logits=True)
  assert differing_bits(out.logits[0], expected[64:]) == 0


def test_empty_batch():
  out = prefill(small_model(), new_cache(), [])
  assert out == ((), (), ())


def test_no_cache_stores_nothing():
  cache, prompt = new_cache("no_cache"), random_tokens(80)
  for _ in range(2):
    (report,) = run(cache, [prompt])
    assert (report.resumed, report.captured) == (0, ())
  assert cache.stats().held_bytes == 0


def test_every_subset_of_captures_has_the_same_bits():
  prompt = random_tokens(70)
  for subset in range(16):
    capture = [CHUNK * (i + 1) for i in range(4) if subset >> i & 1]
    (report,) = run(new_cache(), [prompt], capture=[capture])
    assert report.captured == tuple(capture)


def test_one_compilation_per_rung():
  """Whatever the lengths, batch mixes, resume positions and captures are."""
  model = HybridDecoder(small_config(max_length=272), rngs=nnx.Rngs(3))
  placement = PlacementPolicy("block", budget=CHUNK, chunk=CHUNK)
  cache = PrefixCache(model, capacity=1 << 20, placement=placement)
  before = programs.prefill_group._cache_size()
  random = np.random.default_rng(0)
  for _ in range(12):
    prompts = [
      random_tokens(int(random.integers(1, 200)), int(random.integers(3)))
      for _ in range(random.integers(1, 4))
    ]
    capture = [
      [p for p in range(CHUNK, t.size + 1, CHUNK) if random.integers(2)]
      for t in prompts
    ]
    out = prefill(model, cache, prompts, capture=capture)
    cache.release(out.sequences)
  compiled = programs.prefill_group._cache_size() - before
  assert compiled == len(model.config.numerics.ladder)


# Refusals: one sentence, and nothing has changed.


def assert_refused(
  match, cache=None, prompts=None, error=ValueError, **arguments
):
  cache = cache or new_cache()
  prompts = [random_tokens(40)] if prompts is None else prompts
  before = cache.stats()
  with pytest.raises(error, match=match) as caught:
    prefill(small_model(), cache, prompts, **arguments)
  assert "\n" not in str(caught.value)
  assert cache.stats() == before
  cache.audit()


@pytest.mark.parametrize(
  "prompt, match",
  [
    ([], r"prompts\[1\] is empty"),
    ([[1, 2]], "must be one row"),
    ([512], r"prompts\[1\] holds id 512; the vocabulary is 0 to 511"),
    ([3, -1], "holds id -1"),
    ([0.5], "dtype float64"),
    (list(range(257)), "max_length"),
  ],
)
def test_bad_prompt_is_refused(prompt, match):
  assert_refused(match, prompts=[random_tokens(20), np.asarray(prompt)])


@pytest.mark.parametrize(
  "capture, match",
  [
    ([[8]], r"capture\[0\] holds 8; it must be a multiple of 16"),
    ([[48]], "prompt's 40 tokens"),
    ([[0]], "holds 0"),
    ([[-16]], "holds -16"),
    ([[16], [16]], "capture has 2 entries for 1 prompts"),
  ],
)
def test_bad_capture_is_refused(capture, match):
  assert_refused(match, capture=capture)


def test_bad_anchor_is_refused():
  assert_refused(r"anchors\[0\] holds 41", anchors=[[41]])


def test_anchors_and_capture_together_are_refused():
  assert_refused("both given", anchors=[[16]], capture=[[16]])


def test_capture_without_a_cache_is_refused():
  assert_refused("no_cache", cache=new_cache("no_cache"), capture=[[16]])


@pytest.mark.parametrize(
  "changes", [{"dtype": "bfloat16"}, {"chunk": 32}, {"eps": 1e-5}]
)
def test_another_configuration_is_refused(changes):
  cache = new_cache()
  other = small_model(**changes)
  with pytest.raises(ValueError, match=next(iter(changes))):
    prefill(other, cache, [random_tokens(20)])
  assert cache.stats().held_bytes == 0


def test_other_weights_are_refused_and_equal_ones_are_not():
  cache, prompt = new_cache(), random_tokens(40)
  same = HybridDecoder(small_config(), rngs=nnx.Rngs(0))
  cache.release(prefill(same, cache, [prompt]).sequences)
  other = HybridDecoder(small_config(), rngs=nnx.Rngs(1))
  with pytest.raises(ValueError, match="other weights"):
    prefill(other, cache, [prompt])


def small_cache(states, pages):
  config = small_config()
  slots, leaves = states * state_bytes(config), pages * page_bytes(config)
  return new_cache(
    capacity=slots + leaves, state_share=(slots + 1) / (slots + leaves)
  )


def test_prompt_longer_than_the_capacity_is_refused():
  assert_refused(
    "a sequence of 100 tokens needs 2 states and 7 pages",
    cache=small_cache(4, 6),
    prompts=[random_tokens(100)],
    error=CapacityError,
  )


def test_batch_that_does_not_fit_is_refused_whole():
  cache = small_cache(4, 12)
  assert_refused(
    "cannot reserve",
    cache=cache,
    prompts=[random_tokens(90, seed) for seed in range(3)],
    error=CapacityError,
  )
  run(cache, [random_tokens(90)])


def test_later_wave_that_does_not_fit_releases_the_call():
  cache, document = small_cache(4, 12), random_tokens(80)
  prompts = [np.append(document, random_tokens(9, i)) for i in range(1, 5)]
  with pytest.raises(CapacityError):
    prefill(small_model(), cache, prompts)
  assert cache.sequences == ()
  assert cache.store.index.stats.pins == 0
  cache.audit()
  run(cache, prompts[:1])


def test_reserving_for_one_request_spares_what_another_matched():
  cache, old = small_cache(6, 14), random_tokens(60)
  run(cache, [old])
  # The first of the batch needs room, and the only entry is what the second
  # one resumes from.
  first, second = run(cache, [random_tokens(140, 1), np.append(old, 5)])
  assert (first.resumed, second.resumed) == (0, 48)


def test_a_cache_of_one_sequence_gives_up_what_it_matched():
  cache, prompt = small_cache(2, 5), random_tokens(40)
  out = prefill(small_model(), cache, [prompt])
  tokens = random_tokens(20, seed=1)
  for t in range(20):
    out = decode(small_model(), cache, out.sequences, tokens[t : t + 1])
  cache.release(out.sequences)  # now the end of the conversation has a state
  assert cache.stats().held_slots == 1
  longer = np.concatenate([prompt, tokens, [7]])
  (report,) = run(cache, [longer])
  assert (report.overlap, report.resumed, report.reason) == (60, 0, "no_room")


def test_captures_yield_to_the_capacity():
  cache = small_cache(3, 12)  # two for the sequence, one for a state
  (report,) = run(cache, [random_tokens(90)], capture=[[16, 32, 48, 80]])
  assert report.captured == (80,)


def test_eviction_makes_room_and_bits_stay():
  cache = small_cache(5, 14)
  for seed in range(6):
    run(cache, [random_tokens(90, seed % 3)])
  assert cache.stats().evicted_states > 0
  assert cache.stats().held_bytes <= cache.store.index.budget.capacity_bytes


def test_matches_of_a_batch_are_given_up_for_room():
  cache = small_cache(4, 40)
  documents = [random_tokens(60, seed) for seed in range(2)]
  for document in documents:
    run(cache, [document])
  reports = run(cache, [np.append(document, 5) for document in documents])
  # Two sequences need all four slots: neither may keep what it matched.
  assert [report.resumed for report in reports] == [0, 0]
  assert {report.reason for report in reports} == {"no_room"}


def test_donated_weights_are_refused_with_a_sentence():
  model = HybridDecoder(small_config(), rngs=nnx.Rngs(5))
  cache = PrefixCache(model, capacity=1 << 20, placement=last_placement())
  trained = jax.tree.map(lambda leaf: leaf + 0, model)
  for leaf in jax.tree.leaves(model):
    leaf.delete()
  with pytest.raises(ValueError, match="are gone"):
    prefill(trained, cache, [random_tokens(20)])
