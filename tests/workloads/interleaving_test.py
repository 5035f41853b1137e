import numpy as np
import pytest

from sparse_prefix_jax.workloads import interleave, token_trace

pytestmark = pytest.mark.usefixtures("unchecked_types")


def stream(counts):
  """Groups with so many requests each, one after the other."""
  groups = [g for g, n in enumerate(counts) for _ in range(n)]
  rows = [np.array([i + 1]) for i in range(len(groups))]
  return token_trace("stream", rows, groups)


def literal(counts, seed):
  """The paper's rule with a list instead of a heap."""
  random = np.random.RandomState(seed)
  groups = list(range(len(counts)))
  random.shuffle(groups)
  arrivals = {g: random.exponential(1.0) for g in groups}
  left, order = list(counts), []
  while arrivals:
    group = min(arrivals, key=lambda g: arrivals[g])
    order.append(group)
    left[group] -= 1
    if left[group]:
      arrivals[group] += random.exponential(1.0)
    else:
      del arrivals[group]
  return order


def test_equals_the_rule():
  counts = [5, 1, 9, 3, 3]
  mixed = interleave(stream(counts))
  assert [r.group for r in mixed.requests] == literal(counts, 42)
  other = interleave(stream(counts), seed=1)
  assert [r.group for r in other.requests] == literal(counts, 1)


def test_keeps_every_request_and_the_order_within_groups():
  mixed = interleave(stream([4, 6, 2]))
  assert sorted(r.index for r in mixed.requests) == list(range(12))
  for group in range(3):
    own = [r.index for r in mixed.requests if r.group == group]
    assert own == sorted(own)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, None, "1", np.nan])
def test_seeds_that_are_none_are_refused(seed):
  with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
    interleave(stream([2, 2]), seed)
