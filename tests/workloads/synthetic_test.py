import numpy as np
import pytest

from sparse_prefix_jax.workloads import common_prefix, synthetic_stream

pytestmark = pytest.mark.usefixtures("unchecked_types")


def test_overlaps_follow_the_weights():
  weights = np.array([1.0, 0.0, 2.0, 1.0])
  stream = synthetic_stream(
    weights, requests=4002, length=48, bin_tokens=16, groups=2, seed=3
  )
  documents = [r.ids for r in stream.requests[:2]]
  depths = [
    common_prefix(documents[r.group], r.ids) / 16 for r in stream.requests[2:]
  ]
  found = np.bincount(np.array(depths, int), minlength=4) / len(depths)
  assert set(depths) == {0.0, 2.0, 3.0}
  np.testing.assert_allclose(found, weights / 4, atol=0.03)


def test_is_reproducible():
  a, b = (
    synthetic_stream([1, 1], requests=5, length=64, seed=s) for s in (1, 1)
  )
  for left, right in zip(a.requests, b.requests):
    np.testing.assert_array_equal(left.ids, right.ids)


@pytest.mark.parametrize(
  "weights, changes, sentence",
  [
    ([1, -1], {}, "weights must not be negative nor all zero"),
    ([0, 0], {}, "weights must not be negative nor all zero"),
    ([1, np.nan], {}, "weights must be a vector of finite numbers"),
    ([[1, 1]], {}, "weights must be a vector of finite numbers"),
    ("weights", {}, "weights must be a vector of finite numbers"),
    ([1, 1j], {}, "weights must be a vector of finite numbers"),
    ([1e308, 1e308], {}, "weights must have a sum that is finite"),
    (
      [1, 1],
      {"requests": 0},
      "requests must be an integer of at least 1 .* 0$",
    ),
    ([1, 1], {"requests": 2.5}, r"requests must be an integer .* got 2\.5"),
    ([1, 1], {"groups": 9}, "requests must be an integer of at least 9 .* 3$"),
    ([1, 1], {"groups": True}, "groups must be an integer .* got True"),
    ([1, 1], {"vocabulary": 1}, "vocabulary must be an integer of at least 2"),
    ([1, 1], {"vocabulary": 9.5}, r"vocabulary must be an integer .* got 9\.5"),
    ([1, 1], {"vocabulary": 2**32}, "vocabulary must be .* below 2147483649"),
    ([1, 1], {"bin_tokens": 1.5}, r"bin_tokens must be an integer .* got 1\.5"),
    ([1, 1], {"length": 63}, "length must be an integer of at least 64 .* 63$"),
    ([1, 1], {"length": np.nan}, "length must be an integer .* got nan"),
    ([1, 1], {"seed": -1}, "seed must be an integer of at least 0"),
    ([1, 1], {"seed": None}, "seed must be an integer .* got None"),
  ],
)
def test_bad_arguments_are_refused(weights, changes, sentence):
  arguments = {"requests": 3, "length": 64} | changes
  with pytest.raises(ValueError, match=sentence):
    synthetic_stream(weights, **arguments)
