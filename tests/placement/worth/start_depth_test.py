import numpy as np
import pytest

from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.placement.worth.start_depth import StartDepth
from tests.placement.worth import reference, streams


@pytest.mark.parametrize("seed", range(12))
def test_no_depth_spares_more_and_it_spares_half(seed):
  random = np.random.default_rng(seed)
  depths = StartDepth()
  kin = random.integers(1, 30, 1 + seed % 4)
  for depth in random.choice(kin, 40):
    depths.observe(int(depth) + int(random.integers(seed // 4 + 1)))
  expected = reference.start_depth(depths.counts)
  assert depths.best() == (expected or None)


def test_where_prompts_leave_anywhere_there_is_no_depth():
  depths = StartDepth()
  assert depths.best() is None
  for depth in (1, 2, 4, 8, 16, 32, 64, 128, 256):
    for _ in range(256 // depth):
      depths.observe(depth)
  assert depths.best() is None


def test_what_lies_beyond_is_no_depth():
  depths = StartDepth()
  for _ in range(20):
    depths.observe(600)
  assert depths.best() is None
  depths.observe(511)
  assert depths.best() == 511


def test_few_are_no_evidence():
  depths = StartDepth()
  for _ in range(10):  # The first ones have faded by now.
    depths.observe(7)
  assert depths.best() is None
  depths.observe(7)
  assert depths.best() == 7


def test_the_first_prompt_of_a_new_kin_keeps_a_state_where_others_left():
  policy, spared = Adaptive(block=512), []
  for keys in streams.examples(0):
    visit = policy.observe(keys)
    policy.hold(policy.candidates(visit))
    while policy.held_count > 12:
      policy.release(policy.choose())
    spared.append(visit.resumed)
  second = spared[1::4]
  assert max(second[:5]) < 12 and min(second[20:]) == 12
