"""One set of tests for every implementation of lattice attention.

class TestLatticeAttention(AttentionSuite):
  sizes = Sizes()
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention,
)
from tests.kernels import reference
from tests.kernels.operations import TOLERANCE
from tests.kernels.packing import Job, bits, chunks_of, pack, unpack

WIDTH = 2 * BLOCK_PAGES  # pages of a request: two blocks of keys


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Heads, widths and pools of a test.

  Attributes:
    chunk: Tokens of a chunk c.
    heads: Query heads h.
    kv_heads: Heads of keys and values hkv.
    width: Of a head.
    pages: In the pools.
    packed: Chunks of a call.
    window: Keys that a token sees, or None.
    dtype: Of everything.
  """

  chunk: int = 16
  heads: int = 4
  kv_heads: int = 2
  width: int = 32
  pages: int = 60
  packed: int = 14
  window: int | None = None
  dtype: str = "float32"

  def tokens(self, seed, t):
    """q (scaled), k, v of one request; large enough for a pointed softmax."""
    random = np.random.default_rng(seed)
    q, k, v = (
      random.standard_normal((t, heads, self.width), np.float32)
      for heads in (self.heads, self.kv_heads, self.kv_heads)
    )
    q *= 3 * self.width**-0.5
    return tuple(np.asarray(jnp.asarray(x, self.dtype)) for x in (q, k, v))

  def free_pages(self):
    """A pool of NaN."""
    shape = (self.pages, self.chunk, self.kv_heads, self.width)
    return np.full(shape, np.nan, jnp.dtype(self.dtype))

  def scrambled(self, *lengths, seed=0):
    """Pages of requests of those lengths: every one somewhere else."""
    order = np.random.default_rng(seed).permutation(self.pages)
    counts = [-(-length // self.chunk) for length in lengths]
    return np.split(order[: sum(counts)], np.cumsum(counts)[:-1])


def table_of(pages, rows):
  """Page table; what is not used names a page of the first request."""
  table = np.full((rows, WIDTH), pages[0][0], np.int32)
  for row, own in zip(table, pages):
    row[: len(own)] = own
  return table


@functools.cache
def compiled(window, implementation):
  """One jitted program per window and implementation."""
  return jax.jit(
    functools.partial(
      lattice_attention, window=window, implementation=implementation
    )
  )


class AttentionSuite:
  """Softmax over scattered pages, of one set of bits.

  Attributes:
    sizes: What is tested.
    implementation: A name or a config; None for the best that fits.
  """

  sizes = Sizes()
  implementation = None

  def around(self):
    """Entered around every run."""
    return contextlib.nullcontext()

  def after_each(self):
    """Called after every run."""

  def call(self, jobs, inputs, pages, keys, values, n=None):
    """Tokens [start, end) of each job: outputs per job, and the pools."""
    sizes = self.sizes
    n, c = n or sizes.packed, sizes.chunk
    packed = [pack(jobs, x, n, c) for x in zip(*inputs, strict=True)]
    pools = jnp.asarray(keys), jnp.asarray(values)
    run = compiled(sizes.window, self.implementation)
    with self.around():
      table = jnp.asarray(table_of(pages, sizes.packed))
      results = run(*packed, *pools, chunks_of(jobs, n, c), table)
      out, keys, values = map(np.asarray, results)
    self.after_each()
    return unpack(jobs, out, c), keys, values

  def test_equals_softmax_attention(self, record_property):
    c = self.sizes.chunk
    # Two blocks of keys; a whole page; a part of one.
    lengths = (9 * c + c // 2, c, 5)
    jobs, pages = [Job(t) for t in lengths], self.sizes.scrambled(*lengths)
    inputs = [self.sizes.tokens(i, t) for i, t in enumerate(lengths)]
    free = self.sizes.free_pages()
    outs, keys, _ = self.call(jobs, inputs, pages, free, free)
    errors = [
      reference.relative_error(
        out, reference.causal_attention(*arrays, window=self.sizes.window)
      )
      for arrays, out in zip(inputs, outs, strict=True)
    ]
    record_property("error", float(np.max(errors)))  # NaN stays NaN
    assert all(error <= TOLERANCE[self.sizes.dtype] for error in errors)
    written = {p for own in pages for p in own}
    for page in set(range(self.sizes.pages)) - written:
      assert bits(keys[page]) == bits(free[page])

  def test_pages_hold_the_keys_and_values(self):
    c, free = self.sizes.chunk, self.sizes.free_pages()
    t = 2 * c + c // 2
    (pages,) = self.sizes.scrambled(t)
    q, k, v = self.sizes.tokens(0, t)
    _, *pools = self.call([Job(t)], [(q, k, v)], [pages], free, free)
    for pool, written in zip(pools, (k, v), strict=True):
      held = pool[pages].reshape(-1, *written.shape[1:])[:t]
      assert bits(held) == bits(written)

  def test_inactive_chunks_write_nothing(self):
    free = self.sizes.free_pages()
    inputs = [self.sizes.tokens(0, 1)]
    _, *pools = self.call([Job(1)], inputs, [[3]], free, free)
    for pool in pools:
      free[3] = pool[3]
      assert bits(pool) == bits(free)

  @classmethod
  @functools.cache
  def _cold(cls):
    """One request alone: inputs, pages, outputs, pools."""
    self = cls()
    t = 11 * self.sizes.chunk + 4
    (pages,), free = self.sizes.scrambled(t, seed=9), self.sizes.free_pages()
    inputs = self.sizes.tokens(5, t)
    (out,), *pools = self.call([Job(t)], [inputs], [pages], free, free)
    return inputs, pages, out, pools

  @pytest.mark.parametrize("done", [1, 7, 8, 11])
  def test_resumed_in_any_packing_has_the_bits_of_cold(self, done):
    inputs, pages, expected, before = self._cold()
    start = done * self.sizes.chunk
    # The pages of the prefix stand elsewhere now, everything else is NaN.
    moved = (pages + 7) % self.sizes.pages
    pools = self.sizes.free_pages(), self.sizes.free_pages()
    for pool, held in zip(pools, before, strict=True):
      pool[moved[:done]] = held[pages[:done]]
    others = [p for p in range(self.sizes.pages) if p not in moved]
    jobs = [Job(3), Job(len(expected) - start, start=start), Job(1)]
    rest = [self.sizes.tokens(6, 3), [x[start:] for x in inputs]]
    rest.append(self.sizes.tokens(7, 1))
    tables = [others[:1], moved, others[1:2]]
    outs, *_ = self.call(jobs, rest, tables, *pools)
    assert bits(outs[1]) == bits(expected[start:])

  def test_another_number_of_chunks_has_the_same_bits(self):
    inputs, pages, expected, _ = self._cold()
    free, n = self.sizes.free_pages(), self.sizes.packed + 2
    jobs = [Job(len(expected))]
    (out,), *_ = self.call(jobs, [inputs], [pages], free, free, n=n)
    assert bits(out) == bits(expected)

  def test_pages_before_the_window_may_hold_anything(self):
    inputs, pages, expected, before = self._cold()
    sizes, start = self.sizes, 11 * self.sizes.chunk
    first = 0 if sizes.window is None else start - sizes.window + 1
    unseen = first // sizes.chunk
    pools = [x.copy() for x in before]
    for pool in pools:
      pool[pages[:unseen]] = np.nan
    jobs, rest = [Job(4, start=start)], [[x[start:] for x in inputs]]
    (out,), *_ = self.call(jobs, rest, [pages], *pools)
    assert bits(out) == bits(expected[start:])

  def test_order_of_pages_matters(self):
    inputs, pages, expected, pools = self._cold()
    start, swapped = 11 * self.sizes.chunk, pages.copy()
    # Two pages that a token sees even with a window.
    swapped[[9, 10]] = pages[[10, 9]]
    jobs, rest = [Job(4, start=start)], [[x[start:] for x in inputs]]
    (out,), *_ = self.call(jobs, rest, [pages], *pools)
    assert bits(out) == bits(expected[start:])
    (out,), *_ = self.call(jobs, rest, [swapped], *pools)
    assert bits(out) != bits(expected[start:])
