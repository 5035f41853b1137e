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


def templated(
  seed,
  markers,
  *,
  documents=30,
  questions=9,
  vocabulary=400,
  lengths=(600, 4000),
  again=(0, 0),
):
  """Documents with questions, each document in a template of its own.

  Args:
    seed: Chooses the ids, which are drawn from a skewed distribution.
    markers: What stands between document and question, by template; (), too.
    documents: How many there are.
    questions: How many each has.
    vocabulary: How many ids there are; those of markers are among them.
    lengths: From how many ids, to fewer than how many, a document has.
    again: How often, at least and at most, the marker stands behind a question
      too, with more text.
  """
  rng, rows, groups = np.random.default_rng(seed), [], []
  odds = 1 / np.arange(3, vocabulary + 3)
  odds /= odds.sum()

  def text(low, high):
    return rng.choice(vocabulary, int(rng.integers(low, high)), p=odds)

  for group in range(documents):
    marker = np.array(markers[group % len(markers)], np.int64)
    shared = np.concatenate([text(*lengths), marker])
    for _ in range(questions):
      row = [shared, text(20, 400)]
      for _ in range(
        int(rng.integers(again[0], again[1] + 1)) if again[1] else 0
      ):
        row += [marker, text(20, 400)]
      rows.append(np.concatenate([*row, [1, 2]]))
      groups.append(group)
  order = rng.permutation(len(rows))
  trace = token_trace(
    "templated", [rows[i] for i in order], [groups[i] for i in order]
  )
  return interleave(trace, seed)
