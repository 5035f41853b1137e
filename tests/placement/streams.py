"""Requests for the tests of placements that learn."""

import numpy as np

from sparse_prefix_jax.placement import Features
from sparse_prefix_jax.workloads import interleave, token_trace


def random_rows(seed, count=60, longest=3000, cues=False):
  """Rows (entry, matched, overlap) without any structure."""
  rng, of_cues = np.random.default_rng(seed), np.random.default_rng(seed + 99)
  rows, placed = [], [Features(1000)]
  for born in range(count):
    matched = placed[rng.integers(len(placed))]
    overlap = int(rng.integers(0, matched.length))
    length = int(rng.integers(1, longest))
    entry = Features(
      length, min(overlap, length), max(1, born - matched.born), born
    )
    if cues and born % 3:
      entry = entry._replace(cue=int(of_cues.integers(length + 1)))
    rows.append((entry, matched, overlap))
    placed.append(entry)
  return rows


def templated(seed, markers, *, documents=30, questions=9, vocabulary=400):
  """Documents with questions, each document in a template of its own.

  Args:
    seed: Chooses the ids, which are drawn from a skewed distribution.
    markers: What stands between document and question, by template; (), too.
    documents: How many there are.
    questions: How many each has.
    vocabulary: How many ids there are; those of markers are among them.
  """
  rng, rows, groups = np.random.default_rng(seed), [], []
  odds = 1 / np.arange(3, vocabulary + 3)
  odds /= odds.sum()

  def text(low, high):
    return rng.choice(vocabulary, int(rng.integers(low, high)), p=odds)

  for group in range(documents):
    marker = np.array(markers[group % len(markers)], np.int64)
    shared = np.concatenate([text(600, 4000), marker])
    for _ in range(questions):
      rows.append(np.concatenate([shared, text(20, 400), [1, 2]]))
      groups.append(group)
  order = rng.permutation(len(rows))
  trace = token_trace(
    "templated", [rows[i] for i in order], [groups[i] for i in order]
  )
  return interleave(trace, seed)
