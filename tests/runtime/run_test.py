"""Running a plan: rows of the head, groups one after another."""

import chex
import jax
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import ZERO
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.plan import Segment, build_plan
from sparse_prefix_jax.runtime.run import (
  all_rows,
  head_rows,
  last_rows,
  run_plan,
)
from tests.models_for_tests import small_model
from tests.trees import assert_same_bits

SLOTS, PAGES = 8, 40


def tokens(seed, size):
  ids = np.random.default_rng(seed).integers(0, 512, size)
  return ids.astype(np.int32)


def plan_of(*lengths):
  segments = [
    Segment(
      tokens=tokens(i, length),
      start=0,
      read=ZERO,
      writes={},
      spill=i,
      pages=range(12 * i, 12 * i + 12),
    )
    for i, length in enumerate(lengths)
  ]
  config = small_model().config
  return build_plan(config, segments, slots=SLOTS, pages=PAGES)


def run(plan, rows):
  model = small_model()
  pools = model.init_pools(slots=SLOTS, pages=PAGES)
  return run_plan(programs.freeze(model), pools, plan, rows)


def test_rows_of_a_plan():
  plan = plan_of(20, 3, 16)
  np.testing.assert_array_equal(last_rows(plan), [19, 34, 63])
  expected = [*range(20), 32, 33, 34, *range(48, 64)]
  np.testing.assert_array_equal(all_rows(plan), expected)


def test_logits_are_those_of_the_rows_asked_for():
  plan = plan_of(150, 90, 7)  # 10 + 6 + 1 chunks: groups of 8 and 8 and 4
  every, pools = run(plan, all_rows(plan))
  chex.assert_shape(every, (247, 512))
  chex.assert_type(every, np.float32)
  last, again = run(plan, last_rows(plan))
  assert_same_bits(last, every[[149, 239, 246]])
  none, _ = run(plan, np.zeros(0, np.int64))
  chex.assert_shape(none, (0, 512))
  assert_same_bits(pools[0], again[0])


def test_a_request_cut_by_a_program_has_the_bits_of_one_that_is_not():
  whole, _ = run(plan_of(90), all_rows(plan_of(90)))
  shifted = plan_of(70, 20)  # the same tokens, begun by another request
  logits, _ = run(shifted, last_rows(shifted))
  chex.assert_shape(logits, (2, 512))
  cut = plan_of(120)  # 8 chunks in one program: 90 tokens of it as before
  logits, _ = run(cut, all_rows(cut))
  np.testing.assert_array_equal(tokens(0, 120)[:90], tokens(0, 90))
  assert_same_bits(logits[:90], whole)
  longer = plan_of(150)  # 8 and then 4 chunks: cut after 128 tokens
  logits, _ = run(longer, all_rows(longer))
  assert_same_bits(logits[:90], whole)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64])
def test_head_rows_are_looped_and_padded(count):
  model = small_model()
  frozen = programs.freeze(model)
  hidden = jax.random.normal(jax.random.key(0), (4, 16, 64))
  rows = np.random.default_rng(1).permutation(64)
  logits = head_rows(frozen, hidden, rows)
  got = head_rows(frozen, hidden, rows[:count])
  assert_same_bits(got, logits[:count])
  flat = np.asarray(hidden).reshape(-1, 64)[rows[:count]].astype(np.float64)
  flat /= np.sqrt(
    (flat**2).mean(-1, keepdims=True) + model.config.final_norm.eps
  )
  expected = flat @ np.asarray(model.embedding[...]).T.astype(np.float64)
  np.testing.assert_allclose(got, expected, atol=1e-4)
