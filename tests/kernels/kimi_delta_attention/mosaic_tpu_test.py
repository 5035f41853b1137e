"""kimi_delta_attention on TPU: against the recurrence, and lowered."""

import pytest

from tests.kernels import operations
from tests.kernels.devices import TPUS
from tests.kernels.mosaic_tpu.suite import MosaicTpuSuite, assert_lowers

FLOAT32 = operations.kimi_delta_attention_at((2, 4, 64, 64))
FEW = (
  "random-gates-gates",
  "repeated-0.0-1.0",
  "correlated-mixed-gates",
)


class TestMosaicTpu(MosaicTpuSuite):
  operation = FLOAT32
  cases = FEW


@pytest.mark.parametrize("device", TPUS)
def test_is_picked_and_lowers(device):
  assert_lowers(FLOAT32, device)


@pytest.mark.slow_kernels
class TestMosaicTpuOfEveryCase(MosaicTpuSuite):
  operation = FLOAT32


@pytest.mark.slow_kernels
class TestMosaicTpuOfBfloat16(MosaicTpuSuite):
  operation = operations.kimi_delta_attention_at((1, 2, 64, 128), "bfloat16")
  cases = FEW


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth128(MosaicTpuSuite):
  operation = operations.kimi_delta_attention_at((1, 2, 128, 128))
  cases = FEW


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth128Bfloat16(MosaicTpuSuite):
  operation = operations.kimi_delta_attention_at((1, 1, 128, 128), "bfloat16")
  cases = FEW


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth256(MosaicTpuSuite):
  operation = operations.kimi_delta_attention_at((1, 1, 256, 256))
  cases = FEW


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth256Bfloat16(MosaicTpuSuite):
  operation = operations.kimi_delta_attention_at((1, 1, 256, 256), "bfloat16")
  cases = FEW


@pytest.mark.slow_kernels
class TestMosaicTpuOfShortChunks(MosaicTpuSuite):
  operation = operations.kimi_delta_attention_at((1, 1, 64, 64), chunk=16)
  cases = FEW


@pytest.mark.slow_kernels
@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_every_width_lowers(width, dtype, device):
  sizes = 2, 4, width, width
  assert_lowers(operations.kimi_delta_attention_at(sizes, dtype), device)
