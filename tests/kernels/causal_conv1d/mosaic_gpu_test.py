"""causal_conv1d on GPU, in the interpreter; see `mosaic_gpu/suite.py`."""

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import operations
from tests.kernels.mosaic_gpu.suite import (
  MosaicGpuSuite,
  check_lowers,
  check_short,
  interpreted,
)

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32


def convolution(window, dtype):
  return operations.causal_conv1d_at(128, window, dtype, 64)


def test_causal_conv1d_is_right_and_of_one_set_of_bits():
  check_short(
    convolution(4, "bfloat16"), MosaicGpuConfig(columns=128), "random"
  )


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_causal_conv1d_lowers(dtype):
  check_lowers(
    causal_conv1d,
    ((9, 3, 256), dtype),
    (((4, 64, 256), dtype), ((4, 256), dtype)),
  )


@pytest.mark.slow_kernels
class TestOfBfloat16(MosaicGpuSuite):
  operation = convolution(4, "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=128))


@pytest.mark.slow_kernels
class TestOfFloat32AndTwoTaps(MosaicGpuSuite):
  operation = convolution(2, "float32")
  implementation = interpreted(MosaicGpuConfig(columns=128))
