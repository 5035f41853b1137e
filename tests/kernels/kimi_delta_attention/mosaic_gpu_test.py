"""kimi_delta_attention for Hopper, interpreted; see `mosaic_gpu_suite`."""

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.kimi_delta_attention import kimi_delta_attention
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import operations
from tests.kernels.mosaic_gpu.suite import (
  MosaicGpuSuite,
  check_lowers,
  check_short,
  interpreted,
)
from tests.kernels.packing import chunks_of

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32


def test_kimi_delta_attention_is_right_and_of_one_set_of_bits():
  operation = operations.kimi_delta_attention_at((1, 2, 64, 64), "bfloat16")
  check_short(operation, MosaicGpuConfig(), "correlated-mixed-gates")


@pytest.mark.parametrize("width", [128, 256])
def test_kimi_delta_attention_lowers(width):
  n, c, h, hv, k, v = 4, 64, 2, 4, width, width
  check_lowers(
    kimi_delta_attention,
    ((9, hv, k, v), FLOAT32),
    (
      *[((n, c, h, k), BFLOAT16)] * 2,
      ((n, c, hv, v), BFLOAT16),
      ((n, c, hv, k), FLOAT32),
      ((n, c, hv), FLOAT32),
    ),
  )


def test_float32_is_refused_with_the_reason():
  shape = jnp.zeros((1, 64, 1, 64))
  gate = jnp.zeros((1, 64, 1))
  with pytest.raises(ValueError, match="takes bfloat16 only"):
    kimi_delta_attention(
      *(shape, shape, shape, shape, gate, jnp.zeros((1, 1, 64, 64))),
      chunks_of([], 1, 64),
      implementation=interpreted(MosaicGpuConfig()),
    )


@pytest.mark.slow_kernels
class Test64(MosaicGpuSuite):
  operation = operations.kimi_delta_attention_at((1, 2, 64, 64), "bfloat16")
  implementation = interpreted(MosaicGpuConfig())


@pytest.mark.slow_kernels
class Test128(MosaicGpuSuite):
  operation = operations.kimi_delta_attention_at((1, 2, 128, 128), "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=32))
  cases = ("random-gates-gates", "repeated-0.0-gates", "correlated-mixed-gates")


@pytest.mark.slow_kernels
class Test256(MosaicGpuSuite):
  operation = operations.kimi_delta_attention_at((1, 1, 256, 256), "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=16, stages=1))
  cases = ("random-gates-gates", "correlated-mixed-gates")
