"""Families: the same bits by every way to a position, and on every rung."""

import numpy as np
import pytest

from sparse_prefix_jax.contract import ColdRuns, Schedule, differing_bits
from tests.models.golden_cases import TINY, tiny
from tests.models_for_tests import LONGEST
from tests.trees import assert_same_bits

SMALL = {"chunk": 16, "max_length": 256, "head_rows": 32}
LARGE = {"chunk": 64, "max_length": 512, "ladder": (1, 4)}
# Families of layers that another family here has too, or the small model of
# other tests, so that their lives are with the slow tests.
REPEATED = tuple(
  f"{family}_tiny"
  for family in (
    *("qwen3_next", "granite_hybrid", "bamba"),
    *("olmo_hybrid", "falcon_mamba", "jamba", "nemotron_h", "qwen3_5_moe"),
  )
)
# The others live in one dtype each; the other is with the slow tests.
IN_BFLOAT16 = ("falcon_h1_tiny",)
IN_FLOAT32 = tuple(
  f"{family}_tiny"
  for family in (
    *("mamba", "mamba2", "kimi_linear"),
    *("lfm2", "minimax", "recurrent_gemma"),
  )
)


def slow_where(repeated):
  """All families, of which some are with the slow tests."""
  return [
    pytest.param(name, marks=pytest.mark.slow) if name in repeated else name
    for name in TINY
  ]


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


@pytest.mark.parametrize("name", slow_where((*REPEATED, *IN_BFLOAT16)))
def test_random_lives_differ_in_no_bit(name):
  assert_lives(name, "float32", seeds=range(2))


@pytest.mark.parametrize("name", slow_where((*REPEATED, *IN_FLOAT32)))
def test_random_lives_in_bfloat16_differ_in_no_bit(name):
  assert_lives(name, "bfloat16", seeds=range(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_random_lives_differ_in_no_bit(name, dtype):
  assert_lives(name, dtype, seeds=range(2, 12))


def assert_lives(name, dtype, seeds):
  """In float32 small chunks; in bfloat16 those of 64 tokens, that serve."""
  if dtype == "float32":
    model, longest = tiny(name, dtype=dtype, ladder=(4, 8), **SMALL), LONGEST
  else:  # Two groups of the larger rung, in the first family.
    model = tiny(name, dtype=dtype, **LARGE)
    longest = 448 if name == TINY[0] else 256
  cold, compared = ColdRuns(model, longest=longest), 0
  for seed in seeds:
    schedule = Schedule(cold, seed, longest=longest)
    assert schedule.run() == 0
    compared += schedule.compared
  assert compared > 1e6  # bytes: the schedules did something


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_rung_has_the_same_bits(name, dtype):
  """Of one prompt alone; the lives have two rungs."""
  tokens = random_tokens(640)
  first, other = (
    ColdRuns(
      tiny(name, dtype=dtype, ladder=(rung,), chunk=64, max_length=1024),
      longest=640,
    ).prefill(tokens)
    for rung in (1, 4)
  )
  assert differing_bits(first.logits, other.logits) == 0
  assert_same_bits(first.pools, other.pools)
  assert np.abs(first.logits).max() > 1e-2
