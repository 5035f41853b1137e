"""lattice_attention: softmax attention over scattered pages, of one bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention,
  lattice_attention_step,
)
from tests.kernels import reference
from tests.kernels.packing import Job, bits, chunks_of, pack, unpack

C, H, HKV, K, PAGES, N = 16, 4, 2, 32, 60, 14
WIDTH = 2 * BLOCK_PAGES  # up to 256 tokens, in two blocks of keys
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}

run, step = jax.jit(lattice_attention), jax.jit(lattice_attention_step)


def tokens(seed, t, *, kv_heads=HKV, dtype="float32"):
  """q (scaled), k, v of one request; large enough for a pointed softmax."""
  random = np.random.default_rng(seed)
  shapes = (t, H, K), (t, kv_heads, K), (t, kv_heads, K)
  q, k, v = (random.standard_normal(s, np.float32) for s in shapes)
  q *= 3 * K**-0.5
  return tuple(np.asarray(jnp.asarray(x, dtype)) for x in (q, k, v))


def free_pages(kv_heads=HKV, dtype="float32"):
  return np.full((PAGES, C, kv_heads, K), np.nan, jnp.dtype(dtype))


def scrambled(*lengths, seed=0):
  """Pages of requests of those lengths: every one somewhere else."""
  order = np.random.default_rng(seed).permutation(PAGES)
  counts = [-(-length // C) for length in lengths]
  return np.split(order[: sum(counts)], np.cumsum(counts)[:-1])


def table_of(pages, rows=N):
  """Page table; what is not used names a page of the first request."""
  table = np.full((rows, WIDTH), pages[0][0], np.int32)
  for row, own in zip(table, pages):
    row[: len(own)] = own
  return table


def call(jobs, inputs, pages, keys, values, n=N):
  """Runs the tokens [start, end) of each job: outputs per job, and pools."""
  q, k, v = (pack(jobs, x, n, C) for x in zip(*inputs, strict=True))
  out, keys, values = run(
    q,
    k,
    v,
    jnp.asarray(keys),
    jnp.asarray(values),
    chunks_of(jobs, n, C),
    table_of(pages),
  )
  return unpack(jobs, out, C), np.asarray(keys), np.asarray(values)


@pytest.mark.parametrize(
  ("dtype", "kv_heads"),
  [("float32", 1), ("float32", HKV), ("float32", H), ("bfloat16", HKV)],
)
def test_equals_softmax_attention(dtype, kv_heads):
  lengths = (150, 16, 5)  # two blocks of keys; a whole page; part of one
  jobs, pages = [Job(t) for t in lengths], scrambled(*lengths)
  inputs = [
    tokens(i, t, kv_heads=kv_heads, dtype=dtype) for i, t in enumerate(lengths)
  ]
  free = free_pages(kv_heads, dtype)
  outs, keys, _ = call(jobs, inputs, pages, free, free)
  for arrays, out in zip(inputs, outs, strict=True):
    expected = reference.causal_attention(*arrays)
    assert reference.relative_error(out, expected) <= TOLERANCE[dtype]
  written = {p for own in pages for p in own}
  for page in set(range(PAGES)) - written:
    assert bits(keys[page]) == bits(free[page])


def test_pages_hold_the_keys_and_values():
  (pages,) = scrambled(40)
  q, k, v = tokens(0, 40)
  free = free_pages()
  _, keys, values = call([Job(40)], [(q, k, v)], [pages], free, free)
  for pool, written in ((keys, k), (values, v)):
    assert bits(pool[pages].reshape(-1, HKV, K)[:40]) == bits(written)


def test_inactive_chunks_write_nothing_and_are_finite():
  free = free_pages()
  _, keys, values = call([Job(1)], [tokens(0, 1)], [[3]], free, free)
  free[3] = keys[3]
  assert bits(keys) == bits(free)
  free[3] = values[3]
  assert bits(values) == bits(free)
  chunks = chunks_of([], 1, C)
  q, k, v = (jnp.zeros((1, C, h, K)) for h in (H, HKV, HKV))
  table = np.zeros((1, WIDTH), np.int32)
  out, _, _ = run(q, k, v, keys, values, chunks, table)
  assert bits(out) == bits(np.zeros((1, C, H, K), np.float32))


def cold(t=180):
  (pages,), free = scrambled(t, seed=9), free_pages()
  inputs = tokens(5, t)
  (out,), keys, values = call([Job(t)], [inputs], [pages], free, free)
  return inputs, pages, out, keys, values


@pytest.mark.parametrize("start", [16, 112, 128, 176])
@pytest.mark.parametrize("n", [N, 16])
def test_resumed_in_any_packing_has_the_bits_of_cold(start, n):
  inputs, pages, expected, keys, values = cold()
  # The pages of the prefix stand elsewhere now, everything else is NaN.
  moved = (pages + 7) % PAGES
  pools = free_pages(), free_pages()
  for pool, before in zip(pools, (keys, values), strict=True):
    pool[moved[: start // C]] = before[pages[: start // C]]
  others = [p for p in range(PAGES) if p not in moved]
  jobs = [Job(3), Job(180 - start, start=start), Job(1)]
  rest = [tokens(6, 3), [x[start:] for x in inputs], tokens(7, 1)]
  tables = [others[:1], moved, others[1:2]]
  outs, *_ = call(jobs, rest, tables, *pools, n=n)
  assert bits(outs[1]) == bits(expected[start:])


def test_order_of_pages_matters():
  inputs, pages, expected, keys, values = cold()
  swapped = pages.copy()
  swapped[[0, 1]] = pages[[1, 0]]
  rest = [x[176:] for x in inputs]
  (out,), *_ = call([Job(4, start=176)], [rest], [pages], keys, values)
  assert bits(out) == bits(expected[176:])
  (out,), *_ = call([Job(4, start=176)], [rest], [swapped], keys, values)
  np.testing.assert_allclose(out, expected[176:], atol=1e-5)
  assert bits(out) != bits(expected[176:])


def take_step(inputs, position, keys, values, active, tables):
  return step(*inputs, keys, values, position, active, tables)


@pytest.mark.parametrize("kv_heads", [HKV, H])
def test_steps_equal_softmax_attention(kv_heads):
  lengths = (150, 33, 16)
  inputs = [tokens(i, t, kv_heads=kv_heads) for i, t in enumerate(lengths)]
  pages, free = scrambled(*lengths), free_pages(kv_heads)
  jobs = [Job(t - 1) for t in lengths]
  heads = [[x[:-1] for x in arrays] for arrays in inputs]
  _, keys, values = call(jobs, heads, pages, free, free)
  last = [np.stack(x) for x in zip(*[[y[-1] for y in z] for z in inputs])]
  out, keys, values = take_step(
    last,
    np.array(lengths, np.int32) - 1,
    keys,
    values,
    np.ones(3, bool),
    table_of(pages, 3),
  )
  for row, arrays in enumerate(inputs):
    expected = reference.causal_attention(*arrays)[-1]
    assert reference.relative_error(out[row], expected) <= 1e-5
    page, offset = pages[row][-1], (lengths[row] - 1) % C
    assert bits(keys[page, offset]) == bits(arrays[1][-1])
    assert bits(values[page, offset]) == bits(arrays[2][-1])


def test_a_step_has_the_same_bits_in_any_row_and_writes_only_if_active():
  _, pages, _, keys, values = cold(40)
  others = [p for p in range(PAGES) if p not in pages]
  q, k, v = (x[:4] for x in tokens(8, 4))
  position, tables = np.full(4, 40, np.int32), table_of([others[:3]], 4)
  tables[2] = table_of([pages], 1)[0]

  def at_row(row, active):
    def moved(x):
      return np.roll(x, row - 2, axis=0)

    out, *pools = take_step(
      tuple(moved(x) for x in (q, k, v)),
      moved(position),
      keys,
      values,
      moved(active),
      moved(tables),
    )
    return np.asarray(out)[row], pools

  only = np.arange(4) == 2
  expected, (written, _) = at_row(2, only)
  changed = [p for p in range(PAGES) if bits(written[p]) != bits(keys[p])]
  assert changed == [pages[2]]
  for row in (0, 1, 3):
    out, pools = at_row(row, only)
    assert bits(out) == bits(expected)
    assert bits(pools[0]) == bits(written)


@pytest.mark.parametrize("width", [1, BLOCK_PAGES - 1, BLOCK_PAGES + 1])
def test_page_table_of_another_width_is_refused(width):
  q, k, v = (jnp.zeros((1, C, h, K)) for h in (H, HKV, HKV))
  pool, table = jnp.asarray(free_pages()), jnp.zeros((1, width), jnp.int32)
  message = f"page_table is {width} pages wide; .* multiple of {BLOCK_PAGES}"
  with pytest.raises(ValueError, match=message):
    lattice_attention(q, k, v, pool, pool, chunks_of([], 1, C), table)
  with pytest.raises(ValueError, match=message):
    lattice_attention_step(
      q[0, :1],
      k[0, :1],
      v[0, :1],
      pool,
      pool,
      table[0, :1],
      table[0, :1] == 0,
      table,
    )


def test_unknown_implementation_is_refused():
  q, k, v = (jnp.zeros((1, C, h, K)) for h in (H, HKV, HKV))
  pool, table = jnp.asarray(free_pages()), jnp.zeros((1, WIDTH), jnp.int32)
  chunks = chunks_of([], 1, C)
  with pytest.raises(ValueError, match="'nonsense' of lattice_attention"):
    lattice_attention(
      q, k, v, pool, pool, chunks, table, implementation="nonsense"
    )
