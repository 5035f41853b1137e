"""One set of tests for every implementation of a step of lattice attention.

class TestLatticeAttentionStep(AttentionStepSuite):
  sizes = Sizes()
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention_step,
)
from tests.kernels import reference
from tests.kernels.attention_suite import Sizes
from tests.kernels.operations import TOLERANCE
from tests.kernels.packing import bits

ROWS = 7
"""Rows of a step; a sequence that is alone in the first row has no others."""


@functools.cache
def compiled(window, implementation):
  """One jitted program per window and implementation."""
  return jax.jit(
    functools.partial(
      lattice_attention_step, window=window, implementation=implementation
    )
  )


class AttentionStepSuite:
  """Softmax over the scattered pages of running sequences, of one set of bits.

  Sequences are told by their seeds and their tokens, the last of which is the
  one that the step takes.

  Attributes:
    sizes: What is tested.
    implementation: A name or a config; None for the best that fits.
    blocks: Whole blocks of pages before the last of the longest sequence.
  """

  sizes = Sizes()
  implementation = None
  blocks = 2

  def around(self):
    """Entered around every run."""
    return contextlib.nullcontext()

  def after_each(self):
    """Called after every run."""

  def long(self):
    """Tokens of the longest sequence; its last block has two pages and more."""
    return (self.blocks * BLOCK_PAGES + 2) * self.sizes.chunk + 5

  def pools(self, sequences, pages):
    """Pools of the sequences without their last tokens; NaN elsewhere."""
    pools = self.sizes.free_pages(), self.sizes.free_pages()
    for (seed, t), own in zip(sequences, pages, strict=True):
      for pool, x in zip(pools, self.sizes.tokens(seed, t)[1:], strict=True):
        for i, page in enumerate(own):
          start, stop = i * self.sizes.chunk, (i + 1) * self.sizes.chunk
          held = x[start : min(stop, t - 1)]
          pool[page, : len(held)] = held
    return pools

  def call(self, sequences, pages, pools, rows=None, width=None):
    """A step of the sequences, each in a row: their outputs, and the pools.

    Args:
      sequences: Seed and tokens of each.
      pages: The pages of each.
      pools: Of keys and of values.
      rows: The row of each; the first rows if None. The others are free.
      width: Of the page table; None for the blocks of the longest sequence.
    """
    rows = range(len(sequences)) if rows is None else rows
    b, sizes = ROWS if max(rows) else 1, self.sizes
    table = np.zeros((b, width or (self.blocks + 1) * BLOCK_PAGES), np.int32)
    active, position = np.zeros(b, bool), np.zeros(b, np.int32)
    arrays = [
      np.full((b, *x.shape[1:]), np.nan, x.dtype) for x in sizes.tokens(0, 1)
    ]
    for row, (seed, t), own in zip(rows, sequences, pages, strict=True):
      table[row, : len(own)], active[row], position[row] = own, True, t - 1
      for array, x in zip(arrays, sizes.tokens(seed, t), strict=True):
        array[row] = x[-1]
    step = compiled(sizes.window, self.implementation)
    with self.around():
      pools = map(jnp.asarray, pools)
      results = step(*map(jnp.asarray, arrays), *pools, position, active, table)
      out, keys, values = map(np.asarray, results)
    self.after_each()
    return out[list(rows)], keys, values

  def test_equals_softmax_attention(self, record_property):
    c, sizes = self.sizes.chunk, self.sizes
    lengths = (1, c, c + 1, BLOCK_PAGES * c, BLOCK_PAGES * c + 1, self.long())
    sequences = list(enumerate(lengths))
    pages = sizes.scrambled(*lengths)
    pools = self.pools(sequences, pages)
    rows = (0, 1, 2, 4, 5, 6)  # 3 is free
    outs, *after = self.call(sequences, pages, pools, rows)
    errors = []
    for (seed, t), out in zip(sequences, outs, strict=True):
      q, k, v = sizes.tokens(seed, t)
      expected = reference.causal_attention(q[-1:], k, v, t - 1, sizes.window)
      errors.append(reference.relative_error(out, expected[0]))
    record_property("error", float(np.max(errors)))  # NaN stays NaN
    assert all(error <= TOLERANCE[sizes.dtype] for error in errors)
    self.check_written(sequences, pages, pools, after)

  def check_written(self, sequences, pages, before, after):
    """Each pool has the last tokens, and nothing else is new."""
    for index, (pool, new) in enumerate(zip(before, after, strict=True)):
      for (seed, t), own in zip(sequences, pages, strict=True):
        token = self.sizes.tokens(seed, t)[1 + index][-1]
        pool[own[-1], (t - 1) % self.sizes.chunk] = token
      assert bits(new) == bits(pool)

  @classmethod
  @functools.cache
  def _alone(cls):
    """The longest sequence in a row of its own: pages and output."""
    self = cls()
    sequences, pages = [(5, self.long())], self.sizes.scrambled(self.long())
    outs, *_ = self.call(sequences, pages, self.pools(sequences, pages))
    return pages[0], outs[0]

  @pytest.mark.parametrize("row", [0, 1, 3])
  def test_has_the_same_bits_in_any_row(self, row):
    pages, expected = self._alone()
    moved = (pages + 7) % self.sizes.pages
    free = [p for p in range(self.sizes.pages) if p not in moved]
    sequences, own = [(5, self.long())], [moved]
    # Others before and behind it, and a free row.
    for seed, t, count in ((6, 3, 1), (7, self.sizes.chunk + 9, 2)):
      sequences.append((seed, t))
      own.append(free[:count])
      del free[:count]
    rows = [row, *[x for x in (0, 1, 2, 4) if x != row][-2:]]
    outs, *_ = self.call(sequences, own, self.pools(sequences, own), rows)
    assert bits(outs[0]) == bits(expected)

  def test_a_wider_page_table_has_the_same_bits(self):
    pages, expected = self._alone()
    pools = self.pools([(5, self.long())], [pages])
    width = (self.blocks + 3) * BLOCK_PAGES
    outs, *_ = self.call([(5, self.long())], [pages], pools, width=width)
    assert bits(outs[0]) == bits(expected)

  def test_a_free_row_writes_nothing(self):
    sequences, pages = [(5, 3)], [[3]]
    pools = self.pools(sequences, pages)
    _, *after = self.call(sequences, pages, pools, rows=[2])
    self.check_written(sequences, pages, pools, after)

  def test_pages_before_the_window_may_hold_anything(self):
    sizes, (pages, expected) = self.sizes, self._alone()
    first = 0 if sizes.window is None else self.long() - sizes.window
    pools = self.pools([(5, self.long())], [pages])
    for pool in pools:
      pool[pages[: max(first, 0) // sizes.chunk]] = np.nan
    outs, *_ = self.call([(5, self.long())], [pages], pools)
    assert bits(outs[0]) == bits(expected)

  def test_order_of_pages_matters(self):
    pages, expected = self._alone()
    swapped = pages.copy()
    swapped[[-3, -2]] = pages[[-2, -3]]  # whole pages, seen by a window too
    pools = self.pools([(5, self.long())], [pages])
    outs, *_ = self.call([(5, self.long())], [swapped], pools)
    assert bits(outs[0]) != bits(expected)
