"""The recurrences on matrix states on GPU, in the interpreter.

Of gated_delta_rule, kimi_delta_attention and linear_attention; see `suite.py`.
"""

import math

import jax
import pytest

from sparse_prefix_jax.kernels.gated_delta_rule.mosaic_gpu import buffers_of
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels.devices import HOPPER, lowered
from tests.kernels.matrix_suite import (
  OPERATIONS,
  MatrixSuite,
  each_operation,
  operation_at,
  usual_where,
)
from tests.kernels.mosaic_gpu.suite import (
  MosaicGpuSuite,
  check_short,
  interpreted,
)


@each_operation
def test_is_right_and_of_one_set_of_bits(name):
  operation = operation_at(name, (1, 2, 64, 64), "bfloat16")
  check_short(operation, MosaicGpuConfig(), "correlated-mixed-gates")


@pytest.mark.parametrize(
  ("width", "name"),
  [
    *((128, name) for name in OPERATIONS),
    *(pytest.param(256, *x.values, marks=x.marks) for x in usual_where([])),
  ],
)
def test_is_picked_and_lowers(width, name):
  operation = operation_at(name, (2, 4, width, width), "bfloat16")
  call = operation.empty_call(4, 9)
  assert "mosaic_gpu" in lowered(operation.packed, *call, kind=HOPPER)


def test_a_multiprocessor_has_room_for_two_preparations():
  """233,472 bytes, of which it keeps 1,024 for each program.

  Pallas puts every buffer at a multiple of 1,024 bytes, and takes 2,048 for
  sums over rows.
  """
  shapes = [x for x in jax.tree.leaves(buffers_of(128)) if hasattr(x, "dtype")]
  sizes = [math.prod(x.shape) * x.dtype.itemsize for x in shapes]
  barriers = 2 * 8
  taken = sum(-(-size // 1024) * 1024 for size in sizes) + 2048 + barriers
  assert taken <= 233_472 // 2 - 1024


@each_operation
def test_float32_is_refused_with_the_reason(name):
  operation = operation_at(name, (1, 1, 64, 64))
  config = interpreted(MosaicGpuConfig())
  with pytest.raises(ValueError, match="takes bfloat16 only"):
    operation.packed(*operation.empty_call(1, 1), implementation=config)


@pytest.mark.slow_kernels
class Test64(MatrixSuite, MosaicGpuSuite):
  sizes, dtype = (1, 2, 64, 64), "bfloat16"
  implementation = interpreted(MosaicGpuConfig())


@pytest.mark.slow_kernels
class Test128(MatrixSuite, MosaicGpuSuite):
  names = ("gated_delta_rule", "linear_attention")
  sizes, dtype = (1, 2, 128, 128), "bfloat16"
  implementation = interpreted(MosaicGpuConfig())
  cases = ("random-gates-gates", "repeated-0.0-gates", "correlated-mixed-gates")


@pytest.mark.slow_kernels
class Test128OfKimi(Test128):
  # With more operands than the others have it has room for one stage.
  names = ("kimi_delta_attention",)
  implementation = interpreted(MosaicGpuConfig(stages=1))


@pytest.mark.slow_kernels
class Test128InSharedMemory(Test128):
  # As on a GPU without products of a warpgroup.
  names = ("gated_delta_rule", "kimi_delta_attention", "linear_attention")
  implementation = interpreted(MosaicGpuConfig(columns=32, stages=1))
  cases = ("correlated-mixed-gates",)


@pytest.mark.slow_kernels
class Test256(MatrixSuite, MosaicGpuSuite):
  names = ("gated_delta_rule", "linear_attention")
  sizes, dtype = (1, 1, 256, 256), "bfloat16"
  implementation = interpreted(MosaicGpuConfig(columns=32, stages=1))
  cases = ("random-gates-gates", "correlated-mixed-gates")


@pytest.mark.slow_kernels
class Test256OfKimi(Test256):
  names = ("kimi_delta_attention",)
  implementation = interpreted(MosaicGpuConfig(columns=16, stages=1))
