"""The recurrences on matrix states on TPU: interpreted, and lowered.

Of gated_delta_rule, kimi_delta_attention and linear_attention.
"""

import pytest

from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config
from tests.kernels.devices import TPUS
from tests.kernels.matrix_suite import MatrixSuite, each_operation, operation_at
from tests.kernels.mosaic_tpu.suite import (
  INTERPRET,
  MosaicTpuSuite,
  assert_lowers,
)


class FewCases(MatrixSuite, MosaicTpuSuite):
  """Those that differ most."""

  cases = ("random-gates-gates", "repeated-0.0-1.0", "correlated-mixed-gates")


class TestMosaicTpu(FewCases):
  # Two key heads a step, of two value heads each.
  sizes = (2, 4, 64, 64)
  implementation = Config(interpret=INTERPRET, block=4)


@pytest.mark.slow_kernels
class TestMosaicTpuOfSharedKeyHeads(FewCases):
  # Two steps to a key head.
  sizes = (2, 8, 64, 64)
  implementation = Config(interpret=INTERPRET, block=2)


@pytest.mark.slow_kernels
class TestMosaicTpuOfOneKeyHead(FewCases):
  # Six steps to it, of one value head each.
  sizes = (1, 6, 64, 64)


@each_operation
@pytest.mark.parametrize("device", TPUS)
def test_is_picked_and_lowers(name, device):
  assert_lowers(operation_at(name, (2, 4, 64, 64)), device)


@pytest.mark.slow_kernels
class TestMosaicTpuOfEveryCase(MatrixSuite, MosaicTpuSuite):
  sizes = (2, 4, 64, 64)


@pytest.mark.slow_kernels
class TestMosaicTpuOfBfloat16(FewCases):
  sizes, dtype = (1, 2, 64, 128), "bfloat16"


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth128(FewCases):
  sizes = (1, 2, 128, 128)


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth128Bfloat16(FewCases):
  sizes, dtype = (1, 1, 128, 128), "bfloat16"


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth256(FewCases):
  sizes = (1, 1, 256, 256)


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth256Bfloat16(FewCases):
  sizes, dtype = (1, 1, 256, 256), "bfloat16"


@pytest.mark.slow_kernels
class TestMosaicTpuOfShortChunks(FewCases):
  sizes, chunk = (1, 1, 64, 64), 16


@pytest.mark.slow_kernels
@each_operation
@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_every_width_lowers(width, dtype, device, name):
  assert_lowers(operation_at(name, (2, 4, width, width), dtype), device)
