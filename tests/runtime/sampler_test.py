"""The sampling program against float64 NumPy, and rows that know no batch."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.runtime import row_sampler, sampler
from sparse_prefix_jax.serving.sampling import (
  Sampling,
  SamplingRow,
  sampling_rows,
)
from tests.kernels.devices import HOPPER, lowered, traced_for
from tests.runtime import sampling_reference as reference
from tests.trees import assert_same_bits

# Rows are steps of a loop; on a GPU they stand side by side.
on_both = pytest.mark.usefixtures("one_by_one_or_side_by_side")

VOCAB, MANY, FEW, SLOT = 40, 512, 8, 1


@pytest.fixture(params=[False, True], ids=["one_by_one", "side_by_side"])
def one_by_one_or_side_by_side(request):
  around = traced_for(HOPPER) if request.param else contextlib.nullcontext()
  with around:
    yield


def random_logits(rows, seed=0, vocab=VOCAB):
  shape = (rows, vocab)
  return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def run(logits, rows, positions, counts=None):
  """One call of the program; everything as NumPy."""
  counts = sampler.no_counts(logits.shape[1], 2) if counts is None else counts
  packed = sampling_rows(rows, logits.shape[1])
  positions = np.asarray(positions, np.int32)
  drawn, counts = sampler.sample(logits, packed, counts, positions)
  return jax.tree.map(np.asarray, drawn), counts


def run_few(logits, rows, positions, counts=None):
  """As `run`, with inactive rows up to `FEW`: compiled once for all tests."""
  free = FEW - len(rows)
  padded = np.pad(logits, ((0, free), (0, 0)))
  drawn, counts = run(
    padded, [*rows, *[None] * free], np.pad(positions, (0, free)), counts
  )
  return jax.tree.map(lambda x: x[: len(rows)], drawn), counts


def counts_for(prompt, decoded, vocab=VOCAB):
  row = sampler.counts_of(np.array(prompt), np.array(decoded, int), vocab)
  return sampler.set_counts(sampler.no_counts(vocab, 2), SLOT, row)


@on_both
def test_greedy_is_the_first_largest_logit():
  logits = random_logits(MANY).round(1)  # many are equal
  logits[0] = 0.0
  logits[1, [3, 7]] = 100.0
  logits[2, :2] = 0.0, -0.0
  logits[2, 2:] = -1.0
  drawn, _ = run(logits, [Sampling()] * MANY, np.arange(MANY))
  np.testing.assert_array_equal(drawn.ids, logits.argmax(axis=1))


@on_both
def test_log_probabilities_are_those_of_the_model():
  logits = random_logits(8)
  sampling = Sampling(temperature=0.5, top_k=2, logit_bias={1: 5.0}, best=3)
  drawn, _ = run_few(logits, [sampling] * 7 + [Sampling()], np.arange(8))
  for row in range(8):
    expected = reference.log_softmax(logits[row])
    chosen = drawn.ids[row]
    np.testing.assert_allclose(drawn.logprobs[row], expected[chosen], atol=1e-5)
    if row == 7:
      assert (drawn.best_ids[row] == -1).all()
      continue
    order = reference.descending(logits[row])[: row_sampler.MOST_BEST]
    assert drawn.best_ids[row].tolist() == order
    best = drawn.best_logprobs[row]
    np.testing.assert_allclose(best, expected[order], atol=1e-5)
    if chosen in order:
      assert best[order.index(chosen)] == drawn.logprobs[row]


@functools.cache
def kept_program():
  return jax.jit(row_sampler.kept_ids)


def kept(scaled, **rules):
  rows = sampling_rows([Sampling(temperature=1.0, **rules)], scaled.size)
  row = jax.tree.map(lambda x: x[0], rows)
  return np.asarray(kept_program()(scaled, row))


@pytest.mark.parametrize("equal", [False, True])
def test_top_k_keeps_exactly_k(equal):
  scaled = random_logits(1)[0]
  scaled = (scaled.round() if equal else scaled) - scaled.max().round()
  for k in [1, 2, 3, 17, VOCAB, VOCAB + 5]:
    expected = reference.kept(scaled, top_k=k)
    assert expected.sum() == min(k, VOCAB)
    np.testing.assert_array_equal(kept(scaled, top_k=k), expected)


@pytest.mark.parametrize("top_k", [0, 9])
@pytest.mark.parametrize("equal", [False, True])
def test_top_p_keeps_the_shortest_start(top_k, equal):
  """Shares between any two steps of the cumulated probability."""
  scaled = random_logits(1, seed=3)[0]
  scaled = (scaled.round() if equal else scaled) - scaled.max()
  order = reference.descending(scaled)[: top_k or VOCAB]
  reached = np.cumsum(np.exp(scaled[order].astype(np.float64)))
  reached /= reached[-1]
  ends = [0.0, *reached[reached < 1 - 1e-5]]
  shares = [(a + b) / 2 for a, b in itertools.pairwise(ends)]
  assert len(shares) > 5
  for share in shares:
    expected = reference.kept(scaled, top_k=top_k, top_p=share)
    actual = kept(scaled, top_k=top_k, top_p=share)
    np.testing.assert_array_equal(actual, expected)


def test_top_p_that_is_reached_exactly_stops_there():
  scaled = np.zeros(4, np.float32)  # a quarter each, no rounding
  for count, share in [(1, 0.25), (2, 0.5), (2, 0.26), (3, 0.75), (4, 0.76)]:
    assert kept(scaled, top_p=share).tolist() == [True] * count + [False] * (
      4 - count
    )
  scaled[[0, 2]] = -0.0  # no other value than 0.0
  for share in (0.5, 0.51):
    rows = reference.kept(scaled, top_p=share)
    np.testing.assert_array_equal(kept(scaled, top_p=share), rows)
  assert kept(scaled, top_k=3).tolist() == [True, True, True, False]
  assert kept(scaled, top_p=1e-60).tolist() == [True, False, False, False]


def test_min_p_and_all_rules_together():
  scaled = random_logits(1, seed=5)[0]
  scaled -= scaled.max()
  for rules in (
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_p": 0.93},
    {"min_p": 0.3, "top_p": 0.93, "top_k": 7},
  ):
    expected = reference.kept(scaled, **rules)
    np.testing.assert_array_equal(kept(scaled, **rules), expected)


def chi_square(ids, expected):
  """How far drawn ids are from probabilities, in standard deviations."""
  assert (expected[ids] > 0).all(), "an id was drawn that is not kept"
  there = expected > 0
  mean = expected[there] * len(ids)
  drawn = np.bincount(ids, minlength=expected.size)[there]
  freedom = max(there.sum() - 1, 1)
  statistic = ((drawn - mean) ** 2 / mean).sum()
  return (statistic - freedom) / np.sqrt(2 * freedom)


def draws(logits, make, calls=8, counts=None, allowed=None):
  """Ids of `calls * MANY` rows of the same logits."""
  ids = []
  for call in range(calls):
    numbers = range(call * MANY, (call + 1) * MANY)
    made = [make(number) for number in numbers]
    rows = [
      SamplingRow(sampling, sample, SLOT if counts else -1, allowed)
      for sampling, sample, _ in made
    ]
    given = None if counts is None else counts_for(*counts)
    many = np.repeat(logits[None], MANY, axis=0)
    drawn, _ = run(many, rows, [position for _, _, position in made], given)
    ids.append(drawn.ids)
  return np.concatenate(ids)


LOGITS = random_logits(1, seed=11)[0] / 2
PAST = ([0, 3, 3, 9], [3, 5, 5, 5, 8])


@pytest.mark.parametrize(
  "fields",
  [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 3.0, "top_k": 6},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.1},
    {"temperature": 1.0, "logit_bias": {0: 3.0, 39: -2.0}},
  ],
)
def test_draws_have_the_distribution(fields):
  expected = reference.probabilities(LOGITS, **fields)
  sampling = Sampling(seed=1, **fields)
  ids = draws(LOGITS, lambda i: (sampling, 0, i))
  assert chi_square(ids, expected) < 5


@on_both
def test_draws_with_penalties_and_a_mask_have_the_distribution():
  fields = {
    "temperature": 1.0,
    "repetition_penalty": 1.7,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.3,
  }
  allowed = np.arange(VOCAB) % 3 != 1
  expected = reference.probabilities(LOGITS, *PAST, allowed, **fields)
  sampling = Sampling(seed=1, **fields)
  ids = draws(LOGITS, lambda i: (sampling, 0, i), 8, PAST, allowed)
  assert chi_square(ids, expected) < 5


@pytest.mark.parametrize("varied", ["seed", "sample", "position"])
def test_each_part_of_the_key_draws_anew(varied):
  expected = reference.probabilities(LOGITS, temperature=1.0)

  def make(i):
    parts = {"seed": 7, "sample": 1, "position": 90} | {varied: i}
    sampling = Sampling(temperature=1.0, seed=parts["seed"])
    return sampling, parts["sample"], parts["position"]

  assert chi_square(draws(LOGITS, make), expected) < 5


def test_the_three_parts_of_the_key_are_not_one_number():
  made = [
    (0, 0, 1),
    (0, 1, 0),
    (1, 0, 0),
    (1, 1, 1),
    (0, 0, 0),
    (9, 2**32 - 1, 2**31 - 1),
  ]
  drawn = []
  for call in range(5):
    rows = [
      SamplingRow(Sampling(temperature=1.0, seed=seed + 10 * call), sample)
      for seed, sample, _ in made
    ]
    positions = [position for *_, position in made]
    one, _ = run_few(np.zeros((len(made), VOCAB), np.float32), rows, positions)
    drawn.append(one.ids)
  assert len(set(zip(*map(np.ndarray.tolist, drawn)))) == len(made)


@on_both
def test_penalties_move_the_largest_logit():
  logits = random_logits(2)
  for fields in (
    {"repetition_penalty": 3.0},
    {"repetition_penalty": 0.2},
    {"presence_penalty": 4.0},
    {"frequency_penalty": 1.5},
    {"presence_penalty": -3.0, "frequency_penalty": -0.1},
  ):
    sampling = Sampling(**fields)
    rows = [SamplingRow(sampling, counts=SLOT), sampling]
    drawn, _ = run_few(logits, rows, [0, 0], counts_for(*PAST))
    expected = reference.adjusted_logits(logits[0], *PAST, **fields)
    assert drawn.ids.tolist() == [expected.argmax(), logits[1].argmax()]


@on_both
def test_counts_follow_what_is_drawn():
  """As if they were counted again from the ids, for whoever was preempted."""
  counts = counts_for([1, 2], [2])
  sampling, decoded = Sampling(temperature=1.0), [2]
  for position in range(20):
    rows = [SamplingRow(sampling, counts=SLOT), sampling, None]
    drawn, counts = run_few(random_logits(3), rows, [position] * 3, counts)
    decoded.append(int(drawn.ids[0]))
  expected = counts_for([1, 2], decoded)
  np.testing.assert_array_equal(counts, expected)


@on_both
def test_a_mask_of_one_id_draws_it():
  for token in (0, 31, 32, VOCAB - 1):
    mask = np.arange(VOCAB) == token
    for sampling in (Sampling(), Sampling(temperature=2.0, top_p=0.9)):
      rows = [SamplingRow(sampling, allowed=mask)] * 2
      drawn, _ = run_few(random_logits(2), rows, [0, 1])
      assert drawn.ids.tolist() == [token, token]


OTHERS = [
  None,
  Sampling(),
  Sampling(temperature=0.9, top_p=0.5, seed=3),
  Sampling(temperature=1.3, top_k=4, best=5),
]


def assert_rows_know_no_batch(call):
  """The same row anywhere gives the same bits; `call` is as `run`."""
  logits = random_logits(1, seed=21, vocab=333)[0]
  row = Sampling(temperature=0.9, top_p=0.95, min_p=0.01, seed=5, best=1)
  found = set()
  for size, place, seed in [
    (2, 0, 0),
    (2, 1, 1),
    (7, 0, 2),
    (7, 3, 3),
    (7, 6, 4),
    (20, 1, 5),
    (20, 19, 6),
  ]:
    batch = random_logits(size, seed=seed, vocab=333)
    batch[place] = logits
    rows = [OTHERS[(i + seed) % len(OTHERS)] for i in range(size)]
    rows[place] = SamplingRow(row, sample=2)
    positions = np.random.default_rng(seed).integers(0, 999, size)
    positions[place] = 77
    drawn, _ = call(batch, rows, positions)
    found.add(tuple(field[place].tobytes() for field in drawn))
  assert len(found) == 1


@on_both
def test_rows_know_no_batch():
  assert_rows_know_no_batch(run)


def test_a_key_of_the_step_would_be_caught():
  steps = iter(range(1000))

  def by_step(logits, rows, positions):
    return run(logits, rows, np.full(len(positions), next(steps)))

  with pytest.raises(AssertionError):
    assert_rows_know_no_batch(by_step)


@on_both
def test_one_program_serves_all_parameters():
  run_few(random_logits(2), [None, None], [0, 1])
  before = sampler._sampled._cache_size()
  for row in (*OTHERS, Sampling(logit_bias={2: 1.0}, presence_penalty=1.0)):
    run_few(random_logits(2), [row, row], [0, 1])
  assert sampler._sampled._cache_size() == before


def test_a_single_row_is_refused():
  with pytest.raises(ValueError, match="at least 2"):
    run(random_logits(1), [Sampling()], [0])


def test_side_by_side_nothing_is_asked_of_a_row_alone():
  """Each step of a loop, and each condition, is a wait for the host."""
  rows = sampling_rows([Sampling()] * 16, VOCAB)
  counts, positions = sampler.no_counts(VOCAB), np.zeros(16, np.int32)
  given = jnp.asarray(random_logits(16)), rows, counts, positions
  text = lowered(sampler._sampled, *given, False, kind=HOPPER)
  # Penalties, a draw, its top-k and top-p, the best; and the two searches.
  assert text.count("stablehlo.case") == 5
  assert text.count("stablehlo.while") == 2
  text = lowered(sampler._sampled, *given, True, kind=HOPPER)
  assert text.count("stablehlo.case") + text.count("stablehlo.while") == 0


@pytest.mark.parametrize(
  "asked", [{}, {"top_k": 7}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.9}]
)
def test_what_is_kept_for_a_row_hangs_on_nobody_beside_it(asked):
  """Weights of a tail that a sum does not see, and nobody may cut."""
  scaled = np.full(1000, -30.0, np.float32)
  scaled[500], scaled[::7] = 0.0, -2.0
  rows = sampling_rows([Sampling(temperature=1.0, **asked)], 1000)
  row = jax.tree.map(lambda x: x[0], rows)
  everything = row_sampler.RowNeeds(*[True] * 5)
  alone = row_sampler.kept_ids(jnp.asarray(scaled), row)
  beside = row_sampler.kept_ids(jnp.asarray(scaled), row, everything)
  np.testing.assert_array_equal(beside, alone)
  assert asked or np.all(alone)


def test_greedy_rows_have_the_bits_of_rows_that_may_draw():
  logits, rows = random_logits(20, vocab=333), [Sampling()] * 19 + [None]
  packed, positions = sampling_rows(rows, 333), np.arange(20, dtype=np.int32)
  found = []
  for greedy in (False, True):
    with traced_for(HOPPER):
      drawn, _ = sampler.sample(
        logits, packed, sampler.no_counts(333), positions, greedy=greedy
      )
    found.append(jax.tree.map(np.asarray, drawn))
  assert_same_bits(*found)
