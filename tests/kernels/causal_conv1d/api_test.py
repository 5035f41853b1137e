"""causal_conv1d: the window goes over chunk borders, in and out of slots."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_core,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from tests.kernels import operations, reference
from tests.kernels.packing import Job, chunks_of, pack
from tests.kernels.step_suite import StepSuite
from tests.kernels.suite import (
  CoreSuite,
  InPlaceSuite,
  PackedSuite,
  same_bits,
)

FLOAT32 = operations.causal_conv1d_at()


class TestCausalConv1d(PackedSuite):
  operation = FLOAT32

  def test_the_state_is_the_last_inputs_to_the_bit(self):
    jobs, inputs, pool = self.three_requests()
    jobs = (*jobs, Job(2, read=20, writes={0: 21}))  # fewer tokens than taps
    pool[20] = self.operation.initial_state(3)
    inputs = [*inputs, self.operation.tokens(3, 2)]
    _, after = self.call(jobs, inputs, pool)
    window, c = self.operation.slot[0], self.operation.chunk
    for job, (x,) in zip(jobs, inputs, strict=True):
      past = np.zeros_like(pool[0]) if job.read == ZERO else pool[job.read]
      extended = np.concatenate([past, x])
      for chunk, slot in job.writes.items():
        end = min((chunk + 1) * c, job.length)
        assert same_bits(after[slot], extended[end : end + window])

  def test_steps_leave_the_state_of_the_chunk(self):
    (x,), run = self.operation.tokens(6, 10), self.operation.step
    pool = self.pool()
    pool[5] = self.operation.initial_state(1)
    stepped, read = jnp.asarray(pool), jnp.array([5, ZERO])
    for row in x:
      pair = jnp.asarray(np.stack([row, row]))
      _, stepped = run(pair, stepped, read, jnp.array([5, NONE]))
    _, chunked = self.call([Job(10, read=5, writes={0: 5})], [(x,)], pool)
    assert same_bits(stepped, chunked)


class TestCausalConv1dOfBfloat16(TestCausalConv1d):
  operation = operations.causal_conv1d_at(dtype="bfloat16")


class TestCausalConv1dOfTwoTaps(PackedSuite):
  operation = operations.causal_conv1d_at(window=2)


class TestCausalConv1dPool(InPlaceSuite):
  operation = FLOAT32


class TestCausalConv1dStep(StepSuite):
  operation = FLOAT32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_with_silu_is_silu_of_the_step(dtype):
  operation = operations.causal_conv1d_at(dtype=dtype)
  (x,), window = operation.tokens(0, 3), operation.slot[0]
  weight = jax.random.normal(jax.random.key(0), (window + 1, x.shape[1]))
  weight = weight.astype(dtype)
  pool = np.stack([operation.initial_state(i) for i in range(5)])
  slots = jnp.array([3, ZERO, 1]), jnp.array([0, 2, NONE])
  given = jnp.asarray(x), weight, jnp.asarray(pool), *slots
  y, after = causal_conv1d_step(*given)
  opened, same = causal_conv1d_step(*given, silu=True)
  wide = np.asarray(y, np.float64)
  expected = wide / (1 + np.exp(-wide))
  assert opened.dtype == jnp.float32
  assert reference.relative_error(opened, expected) <= 1e-6
  assert same_bits(same, after)


class TestCausalConv1dCore(CoreSuite):
  operation = FLOAT32
  choices: ClassVar = {}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("silu", ["no", None, np.bool_(True)])
def test_silu_is_a_flag(silu):
  x, weight, pool = jnp.ones((1, 2)), jnp.ones((4, 2)), jnp.zeros((1, 3, 2))
  with pytest.raises(ValueError, match="silu of causal_conv1d_step is "):
    causal_conv1d_step(
      x, weight, pool, jnp.array([0]), jnp.array([0]), silu=silu
    )


def test_unknown_implementation_is_refused():
  x, chunks = jnp.ones((1, 4, 2)), chunks_of([Job(1)], 1, 4)
  weight, pool = jnp.ones((4, 2)), jnp.zeros((1, 3, 2))
  with pytest.raises(ValueError, match="'nonsense' of causal_conv1d"):
    causal_conv1d(x, weight, pool, chunks, implementation="nonsense")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_the_weight_is_that_of_the_convolution(dtype):
  """Over 64 chunks, the padding of the last NaN; summed in float32."""
  operation = operations.causal_conv1d_at(dtype=dtype)
  c, window = operation.chunk, 4
  t, n = 64 * c - 5, 64
  (x,), random = operation.tokens(0, t), np.random.default_rng(1)
  d_y = np.abs(random.standard_normal(x.shape)).astype(np.float32)
  x = np.abs(x)
  job, weight = [Job(t)], jnp.ones((window, x.shape[1]), dtype)
  packed, d_packed = pack(job, [x], n, c), pack(job, [d_y], n, c, padding=0)
  length = chunks_of(job, n, c).length

  @jax.jit
  @jax.grad
  def gradient(weight):
    state = jnp.zeros((window - 1, x.shape[1]), dtype)
    out = causal_conv1d_core(packed, weight, length, initial_state=state).out
    return jnp.sum(jnp.where(d_packed > 0, out, 0.0) * d_packed)

  (wide,) = reference.wide(x)
  extended = np.concatenate([np.zeros((window - 1, x.shape[1])), wide])
  expected = np.stack(
    [(extended[i : i + t] * d_y).sum(0) for i in range(window)]
  )
  got = gradient(weight)
  assert got.dtype == weight.dtype
  limit = {"float32": 1e-4, "bfloat16": 1e-2}[dtype]
  assert reference.relative_error(got, expected) <= limit
