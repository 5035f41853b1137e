import collections

import numpy as np
import pytest

from sparse_prefix_jax import preset
from sparse_prefix_jax.evaluation import Capacity, ModelSizes, simulate
from sparse_prefix_jax.placement import Conditional, PlacementPolicy
from sparse_prefix_jax.placement.cue_learner import CueLearner
from sparse_prefix_jax.placement.cues import Cues, Departure, Prompt, TenantCues
from tests.placement.streams import templated

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

MARKERS = ([390, 391], [380, 395, 7], [9, 399])


def ways_of(pairs):
  """For each occurrence, what it counts as: the columns of `Cues`."""
  ways = []
  for index, pair in enumerate(pairs):
    before, behind = pairs[:index].count(pair), pairs[index + 1 :].count(pair)
    ways.append([0, 1 + min(before, 3), 5 + min(behind, 3)])
  return ways


def naive_position(observed, ids):
  """The module docstring, pair by pair, from everything observed."""
  left, occurs = collections.Counter(), collections.Counter()
  seen, contexts = set(), collections.defaultdict(set)
  for prompt, overlap, shared in observed:
    if overlap < 2 or overlap <= shared:
      continue
    pairs = list(zip(prompt.tolist(), prompt.tolist()[1:]))
    ways = ways_of(pairs)
    if overlap < prompt.size:
      seen.add(pairs[overlap - 2])
      for way in ways[overlap - 2]:
        left[pairs[overlap - 2], way] += 1
        context = tuple(prompt[: overlap - 2].tolist()[-16:])
        contexts[pairs[overlap - 2], way].add(context)
    for number, (pair, three) in enumerate(zip(pairs, ways)):
      if number + 2 > shared:
        occurs.update((pair, way) for way in three if pair in seen)

  def ratio(pair, way):
    ratio = left[pair, way] / (occurs[pair, way] + 2)
    return ratio if ratio >= 0.2 and len(contexts[pair, way]) > 1 else 0.0

  pairs = list(zip(ids.tolist(), ids.tolist()[1:]))
  ratios = [
    max(ratio(pair, way) for way in ways)
    for pair, ways in zip(pairs, ways_of(pairs))
  ]
  best = max(ratios, default=0.0)
  if not best:
    return 0
  follow = [pair for pair, it in zip(pairs, ratios) if it == best][-1]
  near = [it >= 0.8 * best for it in ratios]
  return max(
    n + 2 for n, pair in enumerate(pairs) if pair == follow and near[n]
  )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ids", [3, 40, 2**31])
def test_the_cue_is_the_last_good_place_of_the_best_pair(seed, ids):
  rng, observed, cues = np.random.default_rng(seed), [], Cues.create()
  for _ in range(60):
    prompt = rng.integers(0, ids, int(rng.integers(1, 40))).astype(np.int32)
    if rng.random() < 0.6 and prompt.size > 8:
      prompt[4:6] = 1, 2
    overlap = 6 if rng.random() < 0.5 else int(rng.integers(0, prompt.size))
    overlap = min(overlap, prompt.size)
    shared = int(rng.integers(0, 9)) if rng.random() < 0.5 else 0
    assert cues.position(prompt) == naive_position(observed, prompt)
    cues = cues.observe(prompt, overlap, 1.0, shared=shared)
    observed.append((prompt, overlap, shared))


def test_a_cue_is_looked_for_in_the_last_ids():
  cues = Cues.create()
  for beginning in (4, 5):
    cues = cues.observe(np.array([beginning, 7, 8, 9]), 3, 1.0)
  rest = np.zeros(40_000, np.int32)
  assert cues.position(np.concatenate([[7, 8], rest])) == 0
  assert cues.position(np.concatenate([rest, [7, 8], rest[:9]])) == 40_002


def test_pairs_are_forgotten_beyond_a_number():
  """The pair that was left after most often stays."""
  rng, cues = np.random.default_rng(0), Cues.create()
  for beginning in range(1500):
    cues = cues.observe(np.array([beginning, 2, 3, 4]), 3, 1.0)
    cues = cues.observe(rng.integers(0, 2**31, 9), 5, 1.0)
  assert cues.pairs.size == 1024
  assert cues.position(np.array([0, 2, 3, 4])) == 3


def test_tenants_are_apart_and_bounded():
  cues = TenantCues({})
  for tenant in range(100):
    for beginning in (4, 5):
      ids = np.array([beginning, 7, 8, 9, 9])
      cues = cues.observe(Departure(Prompt(ids, tenant), 3), 1.0)
  assert len(cues.of) == 64
  assert cues.position(Prompt(ids, 99)) == 3
  assert cues.position(Prompt(ids, 0)) == 0
  assert cues.position(Prompt(ids)) == 0


def test_observing_changes_nothing_that_others_hold():
  left = Departure(Prompt(np.array([5, 7, 8, 9, 9])), 3)
  before = TenantCues({}).observe(left, 0.9)
  departures = before.of[None].departures.copy()
  before.observe(left, 0.9)
  np.testing.assert_array_equal(before.of[None].departures, departures)


def share_of_all(trace, warmup_fraction=0.5):
  """Tokens saved by one state per entry, of those by one every 64 tokens."""
  saved = [
    simulate(
      trace,
      policy,
      Capacity("sequences", 60),
      warmup_fraction=warmup_fraction,
    ).tokens_saved
    for policy in (
      PlacementPolicy("conditional", 1),
      PlacementPolicy("block", 64),
    )
  ]
  return saved[0] / saved[1]


@pytest.mark.parametrize("markers", [MARKERS[:1], MARKERS])
@pytest.mark.parametrize("again", [(0, 0), (1, 1), (0, 4)])
def test_one_state_is_enough_where_a_template_has_markers(markers, again):
  """Of one template, and of three that are mixed; with more text behind."""
  assert share_of_all(templated(0, markers, again=again)) >= 0.97


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_marked_cues_do_no_harm(seed, monkeypatch):
  trace = templated(seed, [[]])
  with_cues = share_of_all(trace)
  monkeypatch.setattr(Conditional, "cue", lambda self, prompt, overlap: 0)
  assert with_cues >= share_of_all(trace) - 0.002


@pytest.mark.parametrize("markers", [[[]], MARKERS[:1]])
def test_what_is_known_without_cues_is_not_learned_again(markers, monkeypatch):
  """Documents of one length: nothing can be told, and nothing may be lost."""
  traces = [
    templated(seed, markers, lengths=(2000, 2001), again=(1, 1))
    for seed in range(3)
  ]
  with_cues = [share_of_all(trace, 0.0) for trace in traces]
  monkeypatch.setattr(Conditional, "cue", lambda self, prompt, overlap: 0)
  without = [share_of_all(trace, 0.0) for trace in traces]
  assert min(np.subtract(with_cues, without)) >= -0.002


def saved_by_adaptive(trace):
  """Share of prompt tokens that the default saves in 1 GiB of a real model."""
  sizes = ModelSizes.of_model(preset("qwen3_5_0_8b"), 64)
  report = simulate(
    trace,
    PlacementPolicy("adaptive"),
    Capacity("bytes", 1 << 30),
    sizes=sizes,
    state_share="undivided",
  )
  return report.tokens_saved / sum(r.length for r in trace.requests)


@pytest.mark.parametrize(("markers", "gain"), [(MARKERS[:1], 0.02), ([[]], 0)])
def test_where_entries_are_left_is_a_candidate_of_adaptive(
  markers, gain, monkeypatch
):
  """What a template shares is stored by the first prompt that has it."""
  trace = templated(0, markers, documents=12, questions=6)
  with_cues = saved_by_adaptive(trace)
  monkeypatch.setattr(CueLearner, "cue", lambda self, prompt, overlap: 0)
  assert with_cues >= saved_by_adaptive(trace) + gain
