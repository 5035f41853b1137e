import collections

import numpy as np

from sparse_prefix_jax.placement.offsets import Offsets


def random_counts(count, span, decay):
  rng = np.random.default_rng(0)
  offsets, expected = Offsets.create(), collections.Counter()
  for _ in range(count):
    offset, weight = int(rng.integers(-span, span)), float(rng.random())
    offsets = offsets.observe(offset, weight, decay)
    for known in expected:
      expected[known] *= decay
    expected[offset] += weight
  return offsets, expected


def test_decays_then_counts():
  offsets, expected = random_counts(200, 30, 0.95)
  assert offsets.where.tolist() == sorted(expected)
  np.testing.assert_allclose(
    offsets.counts, [expected[o] for o in sorted(expected)], rtol=1e-12
  )
  for offset in range(-35, 35):
    np.testing.assert_allclose(offsets.count(offset), expected[offset])


def test_tails_of_a_part():
  offsets, expected = random_counts(200, 30, 0.95)
  part = offsets.between(-5, 7)
  known = [o for o in sorted(expected) if -5 <= o <= 7]
  assert part.where.tolist() == known
  tails = [sum(expected[o] for o in known if o >= low) for low in known]
  np.testing.assert_allclose(part.tails(), [*tails, 0.0], atol=1e-12)
  assert offsets.between(1, 0).tails().tolist() == [0.0]


def test_what_weighs_nothing_is_not_kept():
  assert Offsets.create().observe(3, 0.0, 0.5).where.size == 0


def test_the_lightest_make_room_but_not_the_newest():
  offsets = Offsets.create()
  for offset in range(512):
    offsets = offsets.observe(offset, 1.0 + (offset != 7), 1.0)
  offsets = offsets.observe(1000, 0.25, 1.0)
  assert offsets.where.size == 512 and offsets.count(7) == 0.0
  assert offsets.count(1000) == 0.25 and offsets.others == 1.0
  offsets = offsets.observe(1001, 0.5, 0.5)
  assert offsets.count(1000) == 0.0 and offsets.count(1001) == 0.5
  assert offsets.others == 0.5 + 0.125
