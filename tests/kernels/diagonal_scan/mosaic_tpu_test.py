"""diagonal_scan on TPU: interpreted against the recurrence, and lowered."""

import pytest

from tests.kernels import operations
from tests.kernels.devices import TPUS
from tests.kernels.mosaic_tpu.suite import ChannelsSuite, assert_lowers

FLOAT32 = operations.diagonal_scan_at(256)
SELECTIVE = operations.selective_scan_at(256, 16)


class TestMosaicTpu(ChannelsSuite):
  operation = FLOAT32


class TestMosaicTpuSelective(ChannelsSuite):
  operation = SELECTIVE
  cases = ("0.0", "-inf", "mixed", "gates")


@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("operation", [FLOAT32, SELECTIVE])
def test_is_picked_and_lowers(operation, device):
  assert_lowers(operation, device)


@pytest.mark.slow_kernels
class TestMosaicTpuOfBfloat16(ChannelsSuite):
  operation = operations.diagonal_scan_at(128, "bfloat16")


@pytest.mark.slow_kernels
class TestMosaicTpuSelectiveOfEveryCase(ChannelsSuite):
  operation = SELECTIVE


@pytest.mark.slow_kernels
class TestMosaicTpuSelectiveOfBfloat16(ChannelsSuite):
  operation = operations.selective_scan_at(128, 8, "bfloat16", chunk=16)


@pytest.mark.slow_kernels
@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("states", [0, 8, 16, 64])
def test_every_width_lowers(states, dtype, device):
  if states:
    operation = operations.selective_scan_at(2048, states, dtype)
  else:
    operation = operations.diagonal_scan_at(2560, dtype)
  assert_lowers(operation, device)
