"""Attention over pages in int8: the formula, and one set of bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.kernels.lattice_attention import (
  Int8Pages,
  RunningPages,
  int8_pages,
  int8_xla,
  lattice_attention_int8,
  lattice_attention_int8_step,
)
from tests.kernels import reference
from tests.kernels.attention_suite import Sizes, table_of
from tests.kernels.operations import TOLERANCE
from tests.kernels.packing import Job, bits, chunks_of, pack, unpack
from tests.trees import assert_same_bits

SLOTS = 6
DTYPES = "float32", "bfloat16"


@functools.cache
def compiled(window):
  return jax.jit(functools.partial(lattice_attention_int8, window=window))


@functools.cache
def compiled_step(window):
  return jax.jit(functools.partial(lattice_attention_int8_step, window=window))


def expected_codes(x):
  """Codes and scales of a chunk [c hkv k], in NumPy."""
  wide = np.asarray(x, np.float32)
  largest = np.abs(wide).max(axis=(0, 2))
  scales = largest * (np.float32(1) / np.float32(127))
  per_code = np.float32(1) / np.where(scales == 0, np.float32(1), scales)
  codes = np.clip(np.rint(wide * per_code[:, None]), -127, 127)
  return codes.astype(np.int8), scales


def attended(x, chunk):
  """What tokens after their chunk attend in the place of x [t ...]."""
  parts = []
  for start in range(0, len(x), chunk):
    part = x[start : start + chunk]
    codes, scales = expected_codes(part)
    whole = (codes.astype(np.float32) * scales[:, None]).astype(x.dtype)
    parts.append(whole if len(part) == chunk else part)
  return np.concatenate(parts)


def expected_attention(sizes, q, k, v):
  """Softmax in float64: the own chunk as it is, those before quantised."""
  outs, (later_k, later_v) = [], (attended(x, sizes.chunk) for x in (k, v))
  for start in range(0, len(q), sizes.chunk):
    stop = min(start + sizes.chunk, len(q))
    keys = np.concatenate([later_k[:start], k[start:stop]])
    values = np.concatenate([later_v[:start], v[start:stop]])
    part = reference.causal_attention(
      q[start:stop], keys, values, first=start, window=sizes.window
    )
    outs.append(part)
  return np.concatenate(outs)


def free_pools(sizes):
  """Pools in which nothing is a number, and codes are the largest."""
  pages = sizes.pages, sizes.chunk, sizes.kv_heads, sizes.width
  running = np.full((SLOTS, *pages[1:]), np.nan, jnp.dtype(sizes.dtype))
  codes = np.full(pages, 127, np.int8)
  scales = np.full((sizes.pages, sizes.kv_heads), np.nan, np.float32)
  return (
    RunningPages(*map(jnp.asarray, (running, running))),
    Int8Pages(*map(jnp.asarray, (codes, codes, scales, scales))),
  )


def run(sizes, jobs, inputs, pages, pools, n=None):
  """Tokens [start, end) of each job: outputs per job, and the pools."""
  n, c = n or sizes.packed, sizes.chunk
  packed = [pack(jobs, x, n, c) for x in zip(*inputs, strict=True)]
  table = jnp.asarray(table_of(pages, sizes.packed))
  out, *pools = compiled(sizes.window)(
    *packed, *pools, chunks_of(jobs, n, c), table
  )
  return unpack(jobs, np.asarray(out), c), pools


@functools.cache
def cold(sizes):
  """One request alone: inputs, pages, outputs, pools."""
  t = 11 * sizes.chunk + 4
  (pages,) = sizes.scrambled(t, seed=9)
  inputs, job = sizes.tokens(5, t), Job(t, writes={11: 2})
  (out,), pools = run(sizes, [job], [inputs], [pages], free_pools(sizes))
  return inputs, pages, out, pools


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_and_scales_are_those_of_numpy(dtype):
  random = np.random.default_rng(0)
  sizes = np.array([1, 1e-20, 0, 1e30, 1e-38])[:, None]
  x = np.array(jnp.asarray(random.standard_normal((64, 5, 32)) * sizes, dtype))
  codes, scales = jax.jit(int8_pages.quantise)(x)
  assert_same_bits((codes[:, :4], scales[:4]), expected_codes(x[:, :4]))
  largest = np.abs(np.asarray(codes)).max(axis=(0, 2))
  assert largest.tolist() == [127, 127, 0, 127, 0]  # the least are zero
  assert scales[2] == scales[4] == 0 and np.isfinite(scales).all()


def test_halves_go_to_the_even_code():
  x = np.zeros((4, 1, 2), np.float32)
  x[0], x[1:, 0, 0] = 127 / 2, (0.25, 0.75, 1.25)
  codes, scales = int8_pages.quantise(jnp.asarray(x))
  assert scales.tolist() == [0.5]
  assert np.asarray(codes)[:, 0, 0].tolist() == [127, 0, 2, 2]


def test_what_is_attended_is_within_half_a_code():
  (_, k, _), chunk = Sizes().tokens(3, 16), 16
  step = np.abs(k).max(axis=(0, 2)) / 127
  assert (np.abs(attended(k, chunk) - k) <= step[:, None] * 0.5001).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 20])
def test_equals_softmax_attention_over_what_is_quantised(dtype, window):
  sizes = Sizes(dtype=dtype, window=window)
  lengths = (9 * sizes.chunk + 5, sizes.chunk, 5)
  jobs, pages = [Job(t) for t in lengths], sizes.scrambled(*lengths)
  inputs = [sizes.tokens(i, t) for i, t in enumerate(lengths)]
  outs, _ = run(sizes, jobs, inputs, pages, free_pools(sizes))
  for arrays, out in zip(inputs, outs, strict=True):
    expected = expected_attention(sizes, *arrays)
    assert reference.relative_error(out, expected) <= TOLERANCE[dtype]


def test_an_own_chunk_that_is_quantised_is_seen(monkeypatch):
  blocks, sizes = int8_xla._blocks, Sizes()

  def rounded(pages, table, own, *rest):
    codes = [int8_pages.quantise(x) for x in own]
    own = tuple(
      int8_pages.dequantise(x[None], scales[None], own[0].dtype)[0]
      for x, scales in codes
    )
    return blocks(pages, table, own, *rest)

  monkeypatch.setattr(int8_xla, "_blocks", rounded)
  compiled.cache_clear()
  inputs, job = sizes.tokens(5, 32), Job(32)
  (out,), _ = run(sizes, [job], [inputs], [[3, 1]], free_pools(sizes))
  compiled.cache_clear()
  expected = expected_attention(sizes, *inputs)
  assert reference.relative_error(out, expected) > 100 * TOLERANCE["float32"]


def test_earlier_chunks_that_are_exact_are_seen():
  """The reference tells them apart, by far more than the tolerance."""
  inputs, _, out, _ = cold(Sizes())
  wrong = reference.causal_attention(*inputs)
  assert reference.relative_error(out, wrong) > 100 * TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_chunks_are_pages_and_a_cut_one_is_a_slot(dtype):
  sizes = Sizes(dtype=dtype)
  free_running, free_pages = free_pools(sizes)
  (_, k, v), pages, _, (running, written) = cold(sizes)
  c, whole = sizes.chunk, pages[:-1]
  expected = jax.tree.map(np.array, free_pages)
  for number, page in enumerate(whole):
    part = slice(number * c, (number + 1) * c)
    for name, x in (("key", k), ("value", v)):
      codes, scales = expected_codes(x[part])
      getattr(expected, f"{name}s")[page] = codes
      getattr(expected, f"{name}_scales")[page] = scales
  assert_same_bits(written, expected)
  held = jax.tree.map(np.array, free_running)
  for pool, x in zip(held, (k, v), strict=True):
    pool[2] = 0
    pool[2, :4] = x[11 * c :]
  assert_same_bits(running, held)


def test_a_captured_lattice_point_has_an_empty_running_page():
  sizes = Sizes()
  job, inputs = Job(32, writes={0: 4, 1: 1}), sizes.tokens(0, 32)
  _, (running, _) = run(sizes, [job], [inputs], [[3, 7]], free_pools(sizes))
  for pool in map(np.asarray, running):
    assert not pool[[1, 4]].any() and np.isnan(pool[[0, 2, 3, 5]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("done", [1, 7, 8, 11])
def test_resumed_in_any_packing_has_the_bits_of_cold(done, dtype):
  sizes = Sizes(dtype=dtype)
  inputs, pages, expected, (_, before) = cold(sizes)
  start = done * sizes.chunk
  # The pages of the prefix stand elsewhere now, everything else is litter.
  moved = (pages + 7) % sizes.pages
  running, pools = free_pools(sizes)
  pools = Int8Pages(
    *(
      pool.at[moved[:done]].set(held[pages[:done]])
      for pool, held in zip(pools, before, strict=True)
    )
  )
  others = [p for p in range(sizes.pages) if p not in moved]
  jobs = [Job(3), Job(len(expected) - start, start=start), Job(1)]
  rest = [sizes.tokens(6, 3), [x[start:] for x in inputs], sizes.tokens(7, 1)]
  tables = [others[:1], moved, others[1:2]]
  outs, (_, after) = run(sizes, jobs, rest, tables, (running, pools))
  assert bits(outs[1]) == bits(expected[start:])
  for pool, held in zip(after, before, strict=True):
    assert_same_bits(pool[moved[:11]], held[pages[:11]])


def test_another_number_of_chunks_has_the_same_bits():
  sizes = Sizes()
  inputs, pages, expected, _ = cold(sizes)
  job, n = Job(len(expected)), sizes.packed + 2
  (out,), _ = run(sizes, [job], [inputs], [pages], free_pools(sizes), n=n)
  assert bits(out) == bits(expected)


def step_through(sizes, steps, row, size=3):
  """Single tokens after a cold run, in one row of several: outs and pools."""
  (q, k, v), pages, _, pools = cold(sizes)
  more, t = sizes.tokens(8, steps), len(q)
  outs = []
  for i in range(steps):
    x = [np.full((size, *u.shape[1:]), np.nan, u.dtype) for u in more]
    for u, token in zip(x, more, strict=True):
      u[row] = token[i]
    read, write = np.full(size, ZERO), np.full(size, NONE)
    position, active = np.zeros(size, np.int32), np.arange(size) == row
    read[row], write[row], position[row] = 2 if i == 0 else 5, 5, t + i
    table = table_of([pages[:1]] * row + [pages], size)
    rows = Rows(*map(jnp.asarray, (read, write, position, active)))
    out, *pools = compiled_step(sizes.window)(
      *map(jnp.asarray, x), *pools, rows, jnp.asarray(table)
    )
    outs.append(np.asarray(out)[row])
  inputs = [np.concatenate(u) for u in zip((q, k, v), more, strict=True)]
  return np.stack(outs), inputs, pools


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 20])
def test_steps_equal_softmax_attention(dtype, window):
  """Through the end of a chunk, whose page its last token writes."""
  sizes = Sizes(dtype=dtype, window=window)
  outs, inputs, _ = step_through(sizes, 12, row=1)
  expected = expected_attention(sizes, *inputs)[-12:]
  assert reference.relative_error(outs, expected) <= TOLERANCE[dtype]


def test_steps_fill_the_running_page_and_write_it_when_it_is_full():
  sizes, c = Sizes(), Sizes().chunk
  _, numbers, _, (before, _) = cold(sizes)
  _, (_, k, v), (running, pages) = step_through(sizes, c - 4, row=0)
  for slot, pool, x in zip(running, before, (k, v), strict=True):
    assert_same_bits(slot[5], x[11 * c :])
    assert_same_bits(np.delete(slot, 5, 0), np.delete(pool, 5, 0))
  for pool, x in zip(pages[:2], (k, v), strict=True):
    assert_same_bits(pool[numbers[11]], expected_codes(x[11 * c :])[0])


def test_steps_have_the_same_bits_in_any_row():
  first, *_ = step_through(Sizes(), 5, row=0)
  other, *_ = step_through(Sizes(), 5, row=2)
  assert bits(first) == bits(other)


def test_a_chunk_begins_with_an_empty_running_page():
  sizes = Sizes()
  q, k, v = sizes.tokens(0, 1)
  running, pages = free_pools(sizes)
  rows = Rows(*map(jnp.asarray, ([1], [3], [0], [True])))
  table = jnp.asarray(table_of([[0]], 1))
  _, running, _ = lattice_attention_int8_step(
    *map(jnp.asarray, (q, k, v)), running, pages, rows, table
  )
  for pool, token in zip(map(np.asarray, running), (k, v), strict=True):
    assert_same_bits(pool[3, 0], token[0])
    assert not pool[3, 1:].any()


def test_pools_of_another_dtype_are_refused():
  sizes = Sizes()
  inputs = [sizes.tokens(0, 5)]
  running, pages = free_pools(sizes)
  wrong = pages._replace(keys=pages.keys.astype(jnp.int32))
  message = "pages.keys of lattice_attention_int8 is int32; it must be int8"
  with pytest.raises(ValueError, match=message):
    run(sizes, [Job(5)], inputs, [[3]], (running, wrong))


def test_kernels_are_refused_by_name():
  sizes = Sizes()
  packed = [jnp.asarray(x)[None] for x in sizes.tokens(0, sizes.chunk)]
  with pytest.raises(ValueError, match="choose None or one of xla"):
    lattice_attention_int8(
      *packed,
      *free_pools(sizes),
      chunks_of([Job(16)], 1, 16),
      jnp.asarray(table_of([[0]], 1)),
      implementation="mosaic_gpu",
    )


def test_derivatives_are_refused_in_one_sentence():
  sizes, one = Sizes(), jnp.zeros(1, jnp.int32)
  packed = [jnp.asarray(x)[None] for x in sizes.tokens(0, sizes.chunk)]
  pools, table = free_pools(sizes), jnp.asarray(table_of([[0]], 1))

  def chunk(q):
    chunks = chunks_of([Job(16)], 1, 16)
    return lattice_attention_int8(q, *packed[1:], *pools, chunks, table)[0]

  def row(q):
    rows = Rows(one, one, one, one == 0)
    _, k, v = (x[:, 0] for x in packed)
    return lattice_attention_int8_step(q, k, v, *pools, rows, table)[0]

  for run_one, q in ((chunk, packed[0]), (row, packed[0][:, 0])):
    with pytest.raises(ValueError, match="in int8 has no gradient"):
      jax.eval_shape(jax.grad(lambda q, run=run_one: run(q).sum()), q)
    with pytest.raises(ValueError, match="in int8 has no gradient"):
      jax.eval_shape(lambda q, run=run_one: jax.jvp(run, (q,), (q,)), q)
