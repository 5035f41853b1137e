"""Mutated directories: one sentence, or the logits of an independent reader."""

import collections
import json
import shutil

import jax
import numpy as np
import pytest

from sparse_prefix_jax.models.checkpoint import load_pretrained, read_config
from tests.models import float64_model
from tests.models.loaded_logits import CHOICES, model_logits
from tests.models.mutations import BASES, change_nothing, mutate, write_base
from tests.trees import assert_same_bits

# Checks of types would take most of the time: hundreds of files are read.
pytestmark = pytest.mark.usefixtures("unchecked_types")

TOKENS = np.random.default_rng(0).integers(0, 32, 50)
ORDINARY = 60
BLOCK = 50
LOAD = CHOICES | {"end_ids": ()}


def sentence_of(directory, read, **changes):
  """What a reader says of a directory; None if it says nothing."""
  try:
    read(directory, **changes)
  except (ValueError, FileNotFoundError) as error:
    return str(error)
  return None


def assert_one_sentence(text, what):
  assert text.endswith("."), what
  assert "\n" not in text and len(text) < 1000, what


def worst_difference(directory):
  """How far logits are from those of the independent reader, relatively."""
  model, _ = load_pretrained(directory, **LOAD)
  with np.errstate(all="ignore"):
    expected = float64_model.logits(directory, TOKENS)
  assert np.isfinite(expected).all()
  got = model_logits(model, TOKENS)
  return np.abs(got - expected).max() / max(1, np.abs(expected).max())


def assert_told_truly(directory, seed):
  """Judges one mutation.

  Returns:
    "refused" or "loaded".
  """
  what = f"{seed}: {mutate(directory, seed)}"
  said = sentence_of(directory, load_pretrained, **LOAD)
  plain = sentence_of(directory, read_config, ladder=(4,))
  if plain is not None:
    assert_one_sentence(plain, what)
  if said is None:
    assert worst_difference(directory) < 2e-4, what
    return "loaded"
  assert_one_sentence(said, what)
  return "refused"


def judged(tmp_path, seeds):
  """Counts what became of these mutations."""
  counts = collections.Counter()
  for seed in seeds:
    directory = tmp_path / str(seed)
    counts[assert_told_truly(directory, seed)] += 1
    shutil.rmtree(directory)
  jax.clear_caches()
  return counts


@pytest.mark.parametrize("first", range(0, ORDINARY, 20))
def test_a_mutation_is_refused_or_computed(tmp_path, first):
  counts = judged(tmp_path, range(first, first + 20))
  assert counts["refused"] > 5 and counts["loaded"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("first", range(ORDINARY, 2000 + ORDINARY, BLOCK))
def test_two_thousand_mutations_are_refused_or_computed(tmp_path, first):
  counts = judged(tmp_path, range(first, first + BLOCK))
  assert counts["refused"] > 5 and counts["loaded"] > 0
  print(json.dumps({"first": first} | counts))


@pytest.mark.parametrize("number", range(len(BASES)))
def test_the_bases_are_computed(tmp_path, number):
  write_base(tmp_path / "base", number)
  assert worst_difference(tmp_path / "base") < 2e-5


@pytest.mark.parametrize(
  "changes", [60, pytest.param(200, marks=pytest.mark.slow)]
)
def test_harmless_changes_change_nothing(tmp_path, changes):
  bases = []
  for number in range(len(BASES)):
    base = write_base(tmp_path / f"base{number}", number)
    bases.append(load_pretrained(base, **LOAD))
  kinds = collections.Counter()
  for seed in range(changes):
    directory = tmp_path / str(seed)
    kinds[change_nothing(directory, seed)] += 1
    model, config = load_pretrained(directory, **LOAD)
    expected, same = bases[seed % len(BASES)]
    assert config == same
    assert_same_bits(*map(jax.tree.leaves, (model, expected)))
    shutil.rmtree(directory)
  assert len(kinds) == 6 and min(kinds.values()) >= changes // 10
