"""The gradient over pages: that of the formula, wherever pages lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  lattice_attention,
  lattice_attention_step,
)
from tests.kernels import reference
from tests.kernels.attention_suite import Sizes, table_of
from tests.kernels.lattice_attention.api_test import dense_attention
from tests.kernels.packing import Job, chunks_of, pack, unpack

C, PAST, T, OTHER = 16, 32, 45, 21


def drawn(seed, *like):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(x.shape).astype(np.float32) for x in like]


def expected_gradients(heads, d_out, d_pages, window):
  """Of q, k and v of one request: outputs, and all keys and values, weigh."""

  d_out, *d_pages = wide([d_out, *d_pages])

  def loss(q, k, v):
    out = jnp.sum(dense_attention(q, k, v, window) * d_out)
    return out + sum(jnp.sum(x * d) for x, d in zip((k, v), d_pages))

  with jax.enable_x64(True):
    found = jax.grad(loss, argnums=(0, 1, 2))(*reference.wide(*heads))
    return [np.asarray(x) for x in found]


def wide(arrays):
  return [np.asarray(x, np.float64) for x in arrays]


def in_pages(pool, pages, x):
  """The pool with the tokens of a request in its pages."""
  for i, page in enumerate(pages):
    part = x[i * C : (i + 1) * C]
    pool[page, : len(part)] = part
  return pool


def out_of_pages(pool, pages, t):
  return np.concatenate([np.asarray(pool)[page] for page in pages])[:t]


def problem(sizes):
  """Two requests, the first of which resumed; everything free is NaN."""
  ends = PAST + T, OTHER
  heads = [sizes.tokens(i, t) for i, t in enumerate(ends)]
  pages = sizes.scrambled(*ends)
  pools = [
    in_pages(sizes.free_pages(), pages[0][: PAST // C], x[:PAST])
    for x in heads[0][1:]
  ]
  return heads, pages, pools


@pytest.mark.parametrize("window", [None, 24])
def test_gradients_of_chunks_equal_those_of_the_formula(window):
  sizes = Sizes(window=window)
  heads, pages, pools = problem(sizes)
  jobs, n = [Job(T, start=PAST), Job(OTHER)], 6
  new = [[x[PAST:] for x in heads[0]], heads[1]]
  packed = [pack(jobs, x, n, C) for x in zip(*new, strict=True)]
  d_heads = [drawn(7 + i, *x) for i, x in enumerate(heads)]
  d_heads[0][0][:PAST] = 0  # queries of the past are not computed
  d_out = [d_heads[0][0][PAST:], d_heads[1][0]]
  weight = pack(jobs, d_out, n, C, padding=0)
  d_pools = [np.zeros_like(pools[0]) for _ in range(2)]
  for own, d in zip(pages, d_heads, strict=True):
    for pool, x in zip(d_pools, d[1:], strict=True):
      in_pages(pool, own, x)
  table = jnp.asarray(table_of(pages, n))

  @jax.jit
  def gradients(packed, pools):
    def run(packed, pools):
      chunks = chunks_of(jobs, n, C)
      return lattice_attention(*packed, *pools, chunks, table, window=window)

    _, pull = jax.vjp(run, packed, pools)
    return pull((weight, *map(jnp.asarray, d_pools)))

  d_new, d_before = gradients(tuple(packed), tuple(map(jnp.asarray, pools)))
  for i, (start, t) in enumerate([(PAST, PAST + T), (0, OTHER)]):
    want = expected_gradients(heads[i], d_heads[i][0], d_heads[i][1:], window)
    for x, expected in zip(d_new, want, strict=True):
      found = unpack(jobs, x, C)[i]
      assert np.isfinite(found).all()
      assert reference.relative_error(found, expected[start:]) <= 1e-4
    for x, expected in zip(d_before, want[1:], strict=True):
      found = out_of_pages(x, pages[i], t)
      assert not found[start:].any()  # written over
      if start:
        assert reference.relative_error(found[:start], expected[:start]) <= 1e-4


@pytest.mark.parametrize("window", [None, 24])
def test_gradients_of_rows_equal_those_of_the_formula(window):
  """One token of one request, in the last row; the other rows are free."""
  sizes, end = Sizes(window=window), PAST + T
  heads = sizes.tokens(0, end)
  (pages,) = sizes.scrambled(end)
  pools = [in_pages(sizes.free_pages(), pages, x[:-1]) for x in heads[1:]]
  rows = [np.full((3, *x.shape[1:]), np.nan, x.dtype) for x in heads]
  for row, x in zip(rows, heads, strict=True):
    row[2] = x[-1]
  table = table_of([pages], 3)
  table = jnp.asarray(table[[0, 0, 0]])
  position = jnp.array([0, 0, end - 1])
  active = jnp.array([False, False, True])
  (d_out,) = drawn(3, rows[0])

  @jax.jit
  def gradients(rows, pools):
    def run(rows, pools):
      return lattice_attention_step(
        *rows, *pools, position, active, table, window=window
      )

    _, pull = jax.vjp(run, rows, pools)
    return pull((jnp.asarray(d_out), *map(jnp.zeros_like, pools)))

  d_new, d_before = gradients(
    tuple(map(jnp.asarray, rows)), tuple(map(jnp.asarray, pools))
  )
  weights = np.zeros(heads[0].shape)
  weights[-1] = d_out[2]
  want = expected_gradients(
    heads, weights, [np.zeros_like(x) for x in heads[1:]], window
  )
  for x, expected in zip(d_new, want, strict=True):
    assert reference.relative_error(np.asarray(x[2]), expected[-1]) <= 1e-4
    assert not np.asarray(x)[:2].any()
  for x, expected in zip(d_before, want[1:], strict=True):
    found = out_of_pages(x, pages, end)
    assert reference.relative_error(found[:-1], expected[:-1]) <= 1e-4
    assert not found[-1].any()
