"""Restore, scan and capture for any cell; sentinels never reach an index."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import (
  CARRY,
  NONE,
  ZERO,
  Chunks,
  capture,
  capture_rows,
  map_chunks,
  map_rows,
  packed_scan,
  restore,
  restore_rows,
  rounded,
  select,
  step_rows,
)
from tests.kernels.devices import HOPPER, lowered, traced_for
from tests.kernels.packing import bits

SLOTS, N = 6, 5


def a_pool():
  """Slot i holds i + 1; the first and the last two hold NaN and -0.0."""
  pool = np.arange(1.0, SLOTS + 1, dtype=np.float32)[:, None] * np.ones(3)
  pool[-2], pool[-1] = np.nan, -0.0
  pool[0] = np.nan  # what ZERO must not let through
  return pool.astype(np.float32)


def cell(carry, x, length):
  """Not linear, so that order and repetition show."""
  carry = carry * 0.5 + x
  return carry, carry + length.astype(jnp.float32)


run = jax.jit(lambda pool, xs, chunks: packed_scan(cell, pool, xs, chunks))


def naive(pool, xs, read, write, length):
  """`packed_scan` in plain Python, slot by slot."""
  pool, carry, ys = pool.copy(), np.zeros(3, np.float32), []
  for x, source, target, size in zip(xs, read, write, length, strict=True):
    if source == ZERO:
      carry = np.zeros(3, np.float32)
    elif source != CARRY:
      carry = pool[source].copy()
    if size > 0:
      carry = carry * np.float32(0.5) + x
    ys.append(carry + np.float32(size))
    if target != NONE:
      pool[target] = carry
  return np.array(ys), pool


@hypothesis.given(
  read=st.lists(st.integers(CARRY, SLOTS - 1), min_size=N, max_size=N),
  write=st.lists(
    st.sampled_from([NONE, *range(SLOTS)]), min_size=N, max_size=N
  ),
  length=st.lists(st.integers(0, 4), min_size=N, max_size=N),
)
def test_packed_scan_is_the_plain_loop(read, write, length):
  pool, xs = a_pool(), np.arange(3.0 * N, dtype=np.float32).reshape(N, 3)
  fields = (np.array(x, np.int32) for x in (read, write, length))
  chunks = Chunks(*fields, np.zeros(N, np.int32), np.zeros(N, np.int32))
  ys, after = run(pool, xs, chunks)
  expected, kept = naive(pool, xs, read, write, length)
  active = np.array(length) > 0
  np.testing.assert_array_equal(np.asarray(ys)[active], expected[active])
  np.testing.assert_array_equal(after, kept)
  unwritten = [s for s in range(SLOTS) if s not in write]
  assert bits(after[np.array(unwritten, int)]) == bits(pool[unwritten])


def test_restore_reads_a_slot_zero_or_the_carry():
  pools = {"a": jnp.asarray(a_pool()), "b": jnp.arange(SLOTS)}
  carry = {"a": jnp.full(3, -7.0), "b": jnp.array(-7)}
  stored = restore(pools, jnp.array(2), carry)
  assert (stored["a"] == 3).all()
  assert stored["b"] == 2
  empty = restore(pools, jnp.array(ZERO), carry)
  assert bits(empty["a"]) == bits(np.zeros(3, np.float32))
  assert empty["b"] == 0
  assert bits(restore(pools, jnp.array(CARRY), carry)) == bits(carry)


def test_capture_writes_one_slot_or_none():
  pool, carry = jnp.asarray(a_pool()), jnp.array([7.0, jnp.nan, -0.0])
  after = capture(pool, jnp.array(1), carry)
  assert bits(after[1]) == bits(carry)
  others = np.array([0, 2, 3, 4, 5])
  assert bits(after[others]) == bits(pool[others])
  assert bits(capture(pool, jnp.array(NONE), carry)) == bits(pool)


def test_capture_keeps_the_dtype_of_the_pool():
  pool = jnp.zeros((2, 3), jnp.bfloat16)
  after = capture(pool, jnp.array(0), jnp.ones(3))
  assert after.dtype == jnp.bfloat16
  after = capture_rows(pool, jnp.array([0]), jnp.ones((1, 3)))
  assert after.dtype == jnp.bfloat16


def test_rows_restore_and_capture_as_chunks_do():
  pool = jnp.asarray(a_pool())
  restored = restore_rows(pool, jnp.array([2, ZERO, 5, 2]))
  expected = np.array([pool[2], np.zeros(3), pool[5], pool[2]], np.float32)
  assert bits(restored) == bits(expected)
  after = capture_rows(pool, jnp.array([0, NONE, 3]), jnp.full((3, 3), 9.0))
  expected = np.asarray(pool).copy()
  expected[[0, 3]] = 9
  assert bits(after) == bits(expected)


def test_rows_without_a_slot_leave_the_last_slot_alone():
  pool = jnp.asarray(a_pool())
  after = capture_rows(pool, jnp.full(4, NONE), jnp.full((4, 3), 9.0))
  assert bits(after) == bits(pool)


def large_step(rows):
  """A step of rows of 256 KiB each, its pool, and what each row brings."""

  def token(carry, x):
    carry = carry * 0.5 + x[:, None]
    return carry, carry.sum(axis=-1)

  run = jax.jit(functools.partial(step_rows, token), donate_argnums=0)
  pool = np.random.default_rng(0).random((rows + 3, 128, 512), np.float32)
  return run, pool, np.arange(rows, dtype=np.float32)[:, None] + np.ones(512)


def test_rows_of_large_states_have_the_same_bits_in_any_number():
  run, pool, x = large_step(9)
  read = np.array([ZERO, 2, 2, 3, 4, 5, 6, 7, 8], np.int32)
  write = np.array([0, 1, NONE, 3, 9, 5, 10, 7, 11], np.int32)
  whole, after = run(jnp.asarray(pool), (x,), read, write)
  one, two = slice(0, 4), slice(4, 9)
  for rows in (one, two):
    part, then = run(jnp.asarray(pool), (x[rows],), read[rows], write[rows])
    assert bits(part) == bits(whole[rows])
    kept = [slot for slot in write[rows] if slot != NONE]
    assert bits(then[np.array(kept)]) == bits(after[np.array(kept)])
  others = np.array([2, 4, 6, 8])
  assert bits(after[others]) == bits(pool[others])


def test_a_step_of_many_large_states_holds_few_at_a_time():
  temporary = []
  for rows in (8, 32):
    run, pool, x = large_step(rows)
    slots = np.arange(rows, dtype=np.int32)
    compiled = run.lower(pool, (x,), slots, slots).compile()
    temporary.append(compiled.memory_analysis().temp_size_in_bytes)
  few, many = temporary
  assert few < 8 * 4 * 128 * 512 * 3
  assert many - few < 4 * 128 * 512


@pytest.mark.parametrize("kept", [-0.0, np.nan, np.inf])
def test_select_keeps_bits(kept):
  x = {"a": jnp.float32(kept), "b": jnp.array([kept, 1.0])}
  other = jax.tree.map(jnp.ones_like, x)
  assert bits(select(jnp.array(False), other, x)) == bits(x)
  assert bits(select(jnp.array(True), x, other)) == bits(x)


@pytest.mark.parametrize("n", [1, 3, 16, 17])
def test_map_rows_on_a_gpu_sees_one_number_of_rows(n):
  shapes = []

  def scaled(x, scale):
    shapes.append((x.shape, scale.shape))
    return {"y": x * scale[:, None]}, None

  x = jax.random.normal(jax.random.key(0), (n, 64, 5))
  scale = jnp.arange(64.0 * n).reshape(n, 64)
  with traced_for(HOPPER):
    y, nothing = map_rows(scaled, x, scale)
  assert set(shapes) == {((1024, 5), (1024,))}
  assert nothing is None
  assert bits(y["y"]) == bits(x * scale[..., None])


def test_map_rows_on_a_gpu_has_no_loop():
  x = jnp.zeros((16, 64, 5))
  run = functools.partial(map_rows, jnp.tanh)
  assert "while" not in lowered(run, x, kind=HOPPER)
  assert "while" in jax.jit(run).lower(x).as_text()


def test_map_chunks_sees_one_chunk_whatever_n_is():
  shapes = []

  def normalized(x, scale):
    shapes.append((x.shape, scale.shape))
    return x / jnp.linalg.norm(x) * scale, scale

  xs = jax.random.normal(jax.random.key(0), (7, 16, 5)), jnp.arange(7.0)
  y, scale = map_chunks(normalized, *xs)
  assert set(shapes) == {((16, 5), ())}
  assert bits(scale) == bits(xs[1])
  for n in (1, 2, 3):
    part, _ = map_chunks(normalized, *(x[:n] for x in xs))
    assert bits(part) == bits(y[:n])
  np.testing.assert_allclose(
    y[3], xs[0][3] / np.linalg.norm(xs[0][3]) * 3, rtol=1e-5
  )


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 64, 64), (4, 64)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_rounded_before_it_is_added_to(shape, dtype):
  random = np.random.default_rng(0)
  x, y = (jnp.asarray(random.standard_normal(shape), dtype) for _ in range(2))
  added = jax.jit(lambda x, y: rounded(lambda x: x * 12.1, x) + y)(x, y)
  assert np.asarray(added).tobytes() == np.asarray(x * 12.1 + y).tobytes()


def test_a_gpu_rounds_products_between_barriers():
  x = jnp.zeros((2, 64, 4))
  text = lowered(lambda x: rounded(lambda x: x * 3, x), x, kind=HOPPER)
  assert text.count("optimization_barrier") == 2 and "while" not in text
