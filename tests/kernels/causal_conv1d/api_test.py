"""causal_conv1d: the window goes over chunk borders, in and out of slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from tests.kernels import reference
from tests.kernels.packing import (
  Job,
  bits,
  chunks_of,
  pack,
  poisoned_pool,
  unpack,
)

C, D, W, SLOTS, N = 16, 12, 4, 40, 8
run, step = jax.jit(causal_conv1d), jax.jit(causal_conv1d_step)
# Ends inside a chunk; one token after the lattice; fewer tokens than taps.
JOBS = (
  Job(40, writes={0: 39, 1: 3, 2: 8}),
  Job(17, read=5, writes={0: 6, 1: 5}),
  Job(2, read=20, writes={0: 21}),
)


def values(seed, *shape, dtype="float32"):
  x = np.random.default_rng(seed).standard_normal(shape, np.float32)
  return np.asarray(jnp.asarray(x, dtype))


def weights(window=W):
  return values(100, window, D)


def call(jobs, inputs, pool, weight, n=N):
  x = pack(jobs, inputs, n, C)
  y, pool = run(x, weight, jnp.asarray(pool), chunks_of(jobs, n, C))
  return unpack(jobs, y, C), np.asarray(pool)


@pytest.mark.parametrize(
  ("dtype", "window"), [("float32", W), ("bfloat16", W), ("float32", 2)]
)
def test_equals_the_convolution(dtype, window):
  pool = poisoned_pool((SLOTS, window - 1, D), jnp.dtype(dtype))
  pool[5], pool[20] = values(1, 2, window - 1, D, dtype=dtype)
  inputs = [values(i, j.length, D, dtype=dtype) for i, j in enumerate(JOBS)]
  weight = np.asarray(weights(window), jnp.dtype(dtype))
  outs, after = call(JOBS, inputs, pool, weight)
  for job, x, y in zip(JOBS, inputs, outs, strict=True):
    past = pool[job.read] if job.read != ZERO else np.zeros_like(pool[0])
    expected = reference.convolution(x, weight, past)
    assert y.dtype == np.float32
    assert reference.relative_error(y, expected) <= 1e-5
    extended = np.concatenate([past, x])
    for chunk, slot in job.writes.items():
      end = min((chunk + 1) * C, job.length)
      assert bits(after[slot]) == bits(extended[end : end + window - 1])
  written = sorted(s for job in JOBS for s in job.writes.values())
  changed = [s for s in range(SLOTS) if bits(after[s]) != bits(pool[s])]
  assert changed == written


def test_resumed_and_packed_have_the_bits_of_cold():
  x, weight = values(3, 70, D), weights()
  pool = poisoned_pool((SLOTS, W - 1, D))
  (cold,), after = call([Job(70, writes={1: 4})], [x], pool, weight)
  pool[4] = after[4]
  jobs = [Job(9), Job(38, read=4, writes={2: 0}), Job(1)]
  inputs = [values(4, 9, D), x[32:], values(5, 1, D)]
  outs, _ = call(jobs, inputs, pool, weight, n=6)
  assert bits(outs[1]) == bits(cold[32:])


def test_steps_equal_the_chunk():
  t, weight = 10, weights()
  x = values(6, 3, t, D)
  pool = poisoned_pool((SLOTS, W - 1, D))
  pool[5] = values(1, W - 1, D)
  read, write = jnp.array([ZERO, 5, 5]), jnp.array([39, 7, NONE])
  outs, after = [], jnp.asarray(pool)
  for i in range(t):
    y, after = step(x[:, i], weight, after, read, write)
    outs.append(y)
    read = jnp.array([39, 7, 5])
  outs = np.stack(outs, axis=1)
  for row, past in ((0, np.zeros((W - 1, D))), (1, pool[5])):
    expected = reference.convolution(x[row], weight, past)
    assert reference.relative_error(outs[row], expected) <= 1e-6
  jobs = [Job(t, writes={0: 39}), Job(t, read=5, writes={0: 7})]
  chunked, kept = call(jobs, x[:2], pool, weight)
  assert bits(after) == bits(kept)
  np.testing.assert_allclose(outs[:2], chunked, atol=1e-6)


def test_unknown_implementation_is_refused():
  jobs, pool = [Job(1)], jnp.zeros((1, W - 1, D))
  x, chunks = pack(jobs, [values(0, 1, D)], 1, C), chunks_of(jobs, 1, C)
  weight = jnp.asarray(weights())
  with pytest.raises(ValueError, match="'nonsense' of causal_conv1d"):
    causal_conv1d(x, weight, pool, chunks, implementation="nonsense")
