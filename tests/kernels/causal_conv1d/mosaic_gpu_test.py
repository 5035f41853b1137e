"""causal_conv1d on GPU, in the interpreter; see `mosaic_gpu/suite.py`."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d
from sparse_prefix_jax.kernels.causal_conv1d.mosaic_gpu import before
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks
from sparse_prefix_jax.kernels.implementations import DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import operations, reference
from tests.kernels.devices import HOPPER, traced_for
from tests.kernels.mosaic_gpu.suite import (
  MosaicGpuSuite,
  check_lowers,
  check_short,
  interpreted,
)
from tests.kernels.packing import Job, bits, count, poisoned_pool
from tests.kernels.suite import same_bits

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32


def convolution(window, dtype, width=128, chunk=64):
  return operations.causal_conv1d_at(width, window, dtype, chunk)


def suite_of(operation, columns=128):
  suite = MosaicGpuSuite()
  suite.operation = operation
  suite.implementation = interpreted(MosaicGpuConfig(columns=columns))
  return suite


def test_causal_conv1d_is_right_and_of_one_set_of_bits():
  check_short(
    convolution(4, "bfloat16"), MosaicGpuConfig(columns=128), "random"
  )


@pytest.mark.parametrize(
  ("window", "dtype", "chunk"),
  [
    *((2, "float32", 24), (3, "bfloat16", 24), (4, "float32", 24)),
    *((2, "bfloat16", 5), (3, "float32", 5), (4, "bfloat16", 5)),
  ],
)
def test_requests_of_few_tokens_keep_a_part_of_what_was_before(
  window, dtype, chunk
):
  """Each ends in the slot that it began with; the last goes on for a token.

  Chunks of 5 tokens are cut into programs of one, in order: the first of a
  request has written the slot before the others look at what was there.
  """
  operation = convolution(window, dtype, chunk=chunk)
  suite, pool = suite_of(operation), poisoned_pool((9, window - 1, 128), dtype)
  lengths = (1, 2, 3, 4, chunk, chunk + 1)
  inputs = [operation.tokens(i, t) for i, t in enumerate(lengths)]
  jobs = [
    Job(t, read=i, writes={count(Job(t), chunk) - 1: i})
    for i, t in enumerate(lengths)
  ]
  for slot in range(len(jobs)):
    pool[slot] = operation.initial_state(slot)
    pool[slot, -1, ::2] = -0.0
  outs, after = suite.call(jobs, inputs, pool, n=8)
  limit = operations.TOLERANCE[dtype]
  for slot, (job, (x,), out) in enumerate(zip(jobs, inputs, outs, strict=True)):
    extended = np.concatenate([pool[slot], x])
    assert same_bits(after[slot], extended[job.length :])
    expected, _ = operation.reference([x], pool[slot])
    assert reference.relative_error(out, expected) <= limit
  assert same_bits(after[len(jobs) :], pool[len(jobs) :])


def test_the_cut_into_programs_changes_no_bit():
  operation = convolution(4, "bfloat16", width=256)
  inputs, pool = [operation.tokens(0, 100)], poisoned_pool((3, 3, 256))
  jobs = [Job(100, writes={0: 2, 1: 0})]
  pool = pool.astype(BFLOAT16)
  one, two = (
    suite_of(operation, columns).call(jobs, inputs, pool, n=3)
    for columns in (128, 256)
  )
  assert bits(one) == bits(two)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_before_a_chunk_follows_from_the_tokens_one_by_one(seed):
  """Chunks of any lengths: none of what callers promise is relied upon."""
  random, n, c, r = np.random.default_rng(seed), 9, 4, 3
  x, pool = random.standard_normal((n, c, 2)), random.standard_normal((5, r, 2))
  read = random.choice([CARRY, CARRY, ZERO, 0, 4], n)
  length = random.choice([0, 1, 2, c], n)
  past, expected = np.zeros((r, 2)), []
  for j in range(n):
    if read[j] != CARRY:
      past = pool[read[j]] if read[j] != ZERO else np.zeros((r, 2))
    expected.append(past)
    past = np.concatenate([past, x[j, : length[j]]])[-r:]
  nothing = np.full(n, NONE)
  fields = [jnp.asarray(u) for u in (read, nothing, length, nothing, nothing)]
  got = before(jnp.asarray(x), jnp.asarray(pool), Chunks(*fields))
  assert same_bits(got, np.stack(expected).astype(np.float32))


@pytest.mark.parametrize(
  ("width", "window", "dtype"), [(128, 2, FLOAT32), (256, 4, BFLOAT16)]
)
def test_causal_conv1d_lowers(width, window, dtype):
  check_lowers(
    causal_conv1d,
    ((9, window - 1, width), dtype),
    (((4, 64, width), dtype), ((window, width), dtype)),
  )


@pytest.mark.parametrize(
  ("width", "columns", "dtype", "reason"),
  [
    (192, 128, FLOAT32, "cannot cut 192 channels into 128"),
    (512, 512, FLOAT32, "cannot cut 512 channels into 512"),
    (128, 128, jnp.float16, "takes bfloat16 and float32, and these are"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(width, columns, dtype, reason):
  x, pool = jnp.zeros((1, 4, width), dtype), jnp.zeros((1, 1, width), dtype)
  chunks = Chunks(*jnp.array([[ZERO], [NONE], [4], [0], [0]]))
  config = interpreted(MosaicGpuConfig(columns=columns))
  weight = jnp.zeros((2, width), dtype)
  with (
    traced_for(HOPPER),
    pytest.raises(DoesNotFit, match=f"mosaic_gpu: {reason}"),
  ):
    causal_conv1d(x, weight, pool, chunks, implementation=config)


@pytest.mark.slow_kernels
class TestOfBfloat16(MosaicGpuSuite):
  operation = convolution(4, "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=128))


@pytest.mark.slow_kernels
class TestOfFloat32AndTwoTaps(MosaicGpuSuite):
  operation = convolution(2, "float32")
  implementation = interpreted(MosaicGpuConfig(columns=128))


@pytest.mark.slow_kernels
class TestOfThreeTapsAndTwoChannelsAThread(MosaicGpuSuite):
  operation = convolution(3, "bfloat16", width=256)
  implementation = interpreted(MosaicGpuConfig(columns=256))
