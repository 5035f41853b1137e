"""The recurrences on matrix states on TPU: interpreted, and lowered.

Of gated_delta_rule, kimi_delta_attention and linear_attention.
"""

import jax
import numpy as np
import pytest

from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config
from tests.kernels.devices import TPUS, traced_for
from tests.kernels.matrix_suite import (
  MatrixSuite,
  each_operation,
  operation_at,
  usual_where,
)
from tests.kernels.mosaic_tpu.suite import (
  INTERPRET,
  MosaicTpuSuite,
  assert_lowers,
)
from tests.kernels.packing import Job
from tests.trees import assert_same_bits

# With one part where two are due, errors are 1.7e-3 to 1.6e-2.
PARTS = 1e-3


class FewCases(MatrixSuite, MosaicTpuSuite):
  """Those that differ most."""

  cases = ("random-gates-gates", "repeated-0.0-1.0", "correlated-mixed-gates")


class TestMosaicTpu(FewCases):
  # Two key heads a step, of two value heads each.
  usual = ("gated_delta_rule",)
  sizes = (2, 4, 64, 64)
  implementation = Config(interpret=INTERPRET, block=4)


class TestMosaicTpuOfBfloat16Parts(FewCases):
  usual = "kimi_delta_attention", "linear_attention"
  sizes, chunk, dtype = (1, 2, 64, 64), 16, "bfloat16"
  tolerance = PARTS


@pytest.mark.slow_kernels
class TestMosaicTpuOfSharedKeyHeads(FewCases):
  # Two steps to a key head.
  sizes = (2, 8, 64, 64)
  implementation = Config(interpret=INTERPRET, block=2)


@pytest.mark.slow_kernels
class TestMosaicTpuOfOneKeyHead(FewCases):
  # Six steps to it, of one value head each.
  sizes = (1, 6, 64, 64)


@pytest.mark.parametrize("name", usual_where(["gated_delta_rule"]))
def test_a_reset_leaves_nothing_of_a_state_whatever_it_was(name):
  """Also where what it is multiplied by comes to infinity."""
  operation = operation_at(name, (1, 1, 128, 64), "bfloat16", chunk=16)
  job = Job(16, read=1, writes={0: 2})
  inputs = list(operation.tokens(0, 16))
  for number in (0, 1):
    inputs[number] = np.full_like(inputs[number], 128**-0.5)
  inputs[3] = inputs[3].copy()
  inputs[3][0] = -np.inf
  found = []
  for state in (4e37, 0.0):
    suite = TestMosaicTpuOfBfloat16Parts()
    suite.operation = operation
    pool = suite.pool()
    pool[1] = state
    (out,), pool = suite.call([job], [inputs], pool)
    found.append((out, pool[2]))
  assert_same_bits(*found)


@each_operation
@pytest.mark.parametrize("device", TPUS)
def test_is_picked_and_lowers(name, device):
  assert_lowers(operation_at(name, (2, 4, 64, 64)), device)


def test_gates_of_less_digits_are_taken(unchecked_types):
  operation = operation_at("linear_attention", (1, 1, 64, 64))
  *inputs, gate, pool, chunks = operation.empty_call(2, 4)
  with traced_for(TPUS[0]):
    out, _ = jax.eval_shape(
      operation.packed, *inputs, gate.astype("bfloat16"), pool, chunks
    )
  assert out.dtype == "float32"


@pytest.mark.slow_kernels
class TestMosaicTpuOfEveryCase(MatrixSuite, MosaicTpuSuite):
  sizes = (2, 4, 64, 64)


@pytest.mark.slow_kernels
class TestMosaicTpuOfBfloat16(FewCases):
  sizes, dtype = (1, 2, 64, 128), "bfloat16"
  tolerance = PARTS


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth128(FewCases):
  sizes = (1, 2, 128, 128)


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth128Bfloat16(FewCases):
  sizes, dtype = (1, 1, 128, 128), "bfloat16"
  tolerance = PARTS


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth256(FewCases):
  sizes = (1, 1, 256, 256)


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth256Bfloat16(FewCases):
  sizes, dtype = (1, 1, 256, 256), "bfloat16"
  tolerance = PARTS


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
