import numpy as np
import pytest

from sparse_prefix_jax.placement.worth.end_offsets import (
  EndOffsets,
  best_offsets,
)
from tests.placement.worth import reference


def cost(counts, chosen):
  """What overlaps cost with chosen offsets, one at a time."""
  total = 0.0
  for z, count in enumerate(counts.tolist(), start=1):
    covering = [c for c in chosen if c >= z]
    total += count * (min(covering) - z if covering else 4 * counts.size)
  return total


@pytest.mark.parametrize("seed", range(12))
def test_no_two_offsets_are_better(seed):
  random = np.random.default_rng(seed)
  counts = random.integers(0, 4, random.integers(1, 14)) * 1.0
  counts[-1] += 1
  padded = np.concatenate([[0.0], counts, np.zeros(512 - counts.size)])
  chosen = best_offsets(counts, 2)
  plain = reference.offsets(padded)
  assert cost(counts, chosen) == cost(counts, plain)
  assert len(chosen) == len(plain)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_there_are_at_most_so_many_the_largest_first(most):
  counts = np.array([5.0, 0, 0, 5, 0, 0, 0, 5])
  assert best_offsets(counts, most) == ((8,), (8, 4), (8, 4, 1))[most - 1]


def test_counts_fade_and_far_offsets_are_one():
  offsets = EndOffsets()
  for offset in (3, 600, 3):
    offsets.observe(offset)
  assert offsets.counts[3] == 0.998**2 + 1
  assert offsets.counts[512] == 0.998
  assert offsets.best() == (3,)


def test_what_was_seen_too_seldom_or_at_the_end_is_not_chosen():
  offsets = EndOffsets()
  assert offsets.best() == ()
  offsets.observe(7)
  assert offsets.best() == (7,)
  for _ in range(1_600):
    offsets.observe(0)
  assert offsets.best() == ()
