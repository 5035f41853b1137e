"""Requests for the tests of placements that learn."""

import numpy as np

from sparse_prefix_jax.placement import Features


def random_rows(seed, count=60, longest=3000):
  """Rows (entry, matched, overlap) without any structure."""
  rng = np.random.default_rng(seed)
  rows, placed = [], [Features(1000)]
  for born in range(count):
    matched = placed[rng.integers(len(placed))]
    overlap = int(rng.integers(0, matched.length))
    length = int(rng.integers(1, longest))
    entry = Features(
      length, min(overlap, length), max(1, born - matched.born), born
    )
    rows.append((entry, matched, overlap))
    placed.append(entry)
  return rows
