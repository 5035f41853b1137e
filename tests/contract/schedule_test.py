"""Path independence under random schedules."""

import hypothesis
import hypothesis.strategies as st
import pytest

from sparse_prefix_jax.contract import ColdRuns, Schedule
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.runtime import programs
from tests.models_for_tests import LONGEST, cold_runs, small_model

# Families live in bfloat16 too, with the same kinds of layers.
SLOW_BFLOAT16 = pytest.param("bfloat16", marks=pytest.mark.slow)


@pytest.mark.parametrize("dtype", ["float32", SLOW_BFLOAT16])
def test_random_schedules_differ_in_no_bit(dtype):
  compared = []

  @hypothesis.given(st.integers(0, 2**32 - 1))
  @hypothesis.settings(
    max_examples=12, deadline=None, derandomize=True, database=None
  )
  def run(seed):
    schedule = Schedule(cold_runs(dtype=dtype), seed, longest=LONGEST)
    assert schedule.run() == 0
    compared.append(schedule.compared)

  run()
  assert sum(compared) > 1e6  # bytes: the schedules did something


# In bfloat16 families live in chunks of 64 on two rungs.
@pytest.mark.slow
def test_chunks_of_64_and_all_rungs_differ_in_no_bit():
  model = small_model(chunk=64, ladder=(1, 2, 4), max_length=1024)
  cold, compared = ColdRuns(model, longest=640), 0
  for seed in range(4):
    schedule = Schedule(cold, seed, operations=6, longest=640)
    assert schedule.run() == 0
    compared += schedule.compared
  assert compared > 1e6


def test_schedules_compile_nothing_after_the_first():
  compiled = (programs.prefill_group, programs.decode_step, programs.head)
  cold = cold_runs()
  Schedule(cold, 0, longest=LONGEST).run()
  before = [program._cache_size() for program in compiled]
  for seed in range(1, 6):
    Schedule(cold, seed, longest=LONGEST).run()
  assert [program._cache_size() for program in compiled] == before


def test_a_model_with_long_sequences_has_room_for_states():
  # One of the longest takes most of the capacity that short ones would need:
  # what was left were two slots.
  config = small_model().config
  chunk, page = config.numerics.chunk, page_bytes(config)
  short = 8 * (LONGEST // chunk) * (state_bytes(config) + page)
  longest = chunk * int(0.93 * short / page)
  cold = ColdRuns(small_model(max_length=longest), longest=LONGEST)
  for seed in range(3):
    budget = Schedule(cold, seed, longest=LONGEST).cache.store.index.budget
    assert min(budget.slots, budget.pages) >= LONGEST // chunk + 2


@pytest.mark.parametrize("longest", [5, 40, 64, 100])
def test_schedules_of_less_than_two_chunks_draw_what_there_is(longest):
  """One lattice point, or none: states are hardly ever kept."""
  model = small_model(chunk=64, ladder=(1,), max_length=100)
  cold = ColdRuns(model, longest)
  schedules = [
    Schedule(cold, seed, operations=3, longest=longest) for seed in range(4)
  ]
  lengths = [past.size for each in schedules for past in each.pasts]
  assert 1 <= min(lengths) <= max(lengths) <= longest
  assert schedules[0].run() == 0
  assert Schedule(cold, 0, operations=1).longest == 100  # of 160
