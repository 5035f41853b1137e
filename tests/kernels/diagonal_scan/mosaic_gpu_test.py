"""diagonal_scan on GPU, in the interpreter; see `mosaic_gpu/suite.py`."""

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.diagonal_scan import diagonal_scan
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import operations
from tests.kernels.mosaic_gpu.suite import (
  MosaicGpuSuite,
  check_lowers,
  check_short,
  interpreted,
)

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32


def test_diagonal_scan_is_right_and_of_one_set_of_bits():
  operation = operations.diagonal_scan_at(128)
  check_short(operation, MosaicGpuConfig(columns=128), "mixed")


def test_selective_scan_is_right_and_of_one_set_of_bits():
  operation = operations.selective_scan_at(64)
  check_short(operation, MosaicGpuConfig(columns=64), "mixed")


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_diagonal_scan_lowers(dtype):
  x = (4, 64, 256)
  check_lowers(diagonal_scan, ((9, 256), FLOAT32), ((x, dtype), (x, FLOAT32)))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_selective_scan_lowers(dtype):
  x, b, rate = (4, 64, 256), (4, 64, 16), (256, 16)
  check_lowers(
    diagonal_scan,
    ((9, *rate), FLOAT32),
    ((x, dtype), (x, FLOAT32)),
    rate=(rate, FLOAT32),
    b=(b, dtype),
    c=(b, dtype),
  )


@pytest.mark.slow_kernels
class TestDiagonal(MosaicGpuSuite):
  operation = operations.diagonal_scan_at(128, "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=128))


@pytest.mark.slow_kernels
class TestSelective(MosaicGpuSuite):
  operation = operations.selective_scan_at(128, 16, "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=64))
