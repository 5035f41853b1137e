"""causal_conv1d on TPU: interpreted against the sum, and lowered."""

import jax
import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d
from tests.kernels import operations
from tests.kernels.devices import TPUS
from tests.kernels.mosaic_tpu.suite import ChannelsSuite, assert_lowers
from tests.kernels.packing import Job, bits, chunks_of

FLOAT32 = operations.causal_conv1d_at(256)


class TestMosaicTpu(ChannelsSuite):
  operation = FLOAT32


@pytest.mark.parametrize("device", TPUS)
def test_is_picked_and_lowers(device):
  assert_lowers(FLOAT32, device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_window_has_the_bits_of_the_inputs(dtype):
  """A negative zero stays one, in rows of the chunk and of the old window."""
  x = jnp.full((5, 16, 128), -0.0, dtype)
  pool = jnp.full((9, 3, 128), -0.0, dtype).at[:5, 1].set(3.0)
  weight = jnp.ones((4, 128), dtype)
  jobs = [Job(t, read=i, writes={0: i}) for i, t in enumerate((1, 2, 3, 4, 16))]
  chunks = chunks_of(jobs, 5, 16)
  run = jax.jit(causal_conv1d, static_argnames="implementation")
  config = ChannelsSuite.implementation
  _, after = run(x, weight, pool, chunks, implementation=config)
  assert after.dtype == pool.dtype
  assert bits(after) == bits(run(x, weight, pool, chunks)[1])


@pytest.mark.slow_kernels
class TestMosaicTpuOfBfloat16(ChannelsSuite):
  operation = operations.causal_conv1d_at(128, dtype="bfloat16", chunk=64)


@pytest.mark.slow_kernels
class TestMosaicTpuOfTwoTaps(ChannelsSuite):
  operation = operations.causal_conv1d_at(128, window=2)


@pytest.mark.slow_kernels
class TestMosaicTpuOfThreeTaps(ChannelsSuite):
  operation = operations.causal_conv1d_at(128, window=3)


@pytest.mark.slow_kernels
class TestMosaicTpuOfNineTaps(ChannelsSuite):
  operation = operations.causal_conv1d_at(128, window=9, dtype="bfloat16")


@pytest.mark.slow_kernels
@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [2, 3, 4, 5, 9])
def test_every_window_lowers(window, dtype, device):
  assert_lowers(operations.causal_conv1d_at(2048, window, dtype), device)
