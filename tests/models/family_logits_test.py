"""Families: the logits of transformers, cold, resumed and decoded."""

import numpy as np
import pytest

from sparse_prefix_jax import PrefixCache, decode, prefill
from tests.models.golden_cases import CASES, GOLDEN, TINY, load


def golden(case):
  stored = np.load(GOLDEN / case / "golden.npz")
  return stored["tokens"], stored["logits"]


def distance(got, expected):
  """The largest difference, where 1 is as much as is allowed."""
  limit = 2e-4 * max(1.0, np.abs(expected).max() / 10)
  return np.abs(got - expected).max() / limit


def test_every_family_has_three_cases():
  families = {case.rpartition("_")[0] for case in CASES}
  assert families == {name.removesuffix("_tiny") for name in TINY}
  assert len(CASES) == 3 * len(families)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case):
  (tokens, expected), model = golden(case), load(GOLDEN / case)
  assert np.abs(expected).max() > 0.5  # there is something to agree on
  cache, resumed = PrefixCache(model, capacity="4MiB"), []
  for capture in ([48], [128], []):
    out = prefill(model, cache, [tokens], capture=[capture], all_logits=True)
    cache.release(out.sequences)
    resumed.append(out.reports[0].resumed)
    assert distance(out.logits[0], expected[resumed[-1] :]) <= 1
  assert resumed == [0, 48, 128]


# What a reader could get wrong is in both programs: the one of a step is
# compiled for the first shape of each family, and in the slow tests for all.
@pytest.mark.parametrize(
  "case",
  [
    case if case.endswith("_1") else pytest.param(case, marks=pytest.mark.slow)
    for case in CASES
  ],
)
def test_decoded_logits_are_those_of_transformers(case):
  (tokens, expected), model = golden(case), load(GOLDEN / case)
  cache = PrefixCache(model, capacity="4MiB")
  sequences = prefill(model, cache, [tokens[:100]]).sequences
  for position in range(100, 130):
    out = decode(model, cache, sequences, tokens[position : position + 1])
    sequences = out.sequences
    assert distance(out.logits[0], expected[position]) <= 1
  cache.release(sequences)
