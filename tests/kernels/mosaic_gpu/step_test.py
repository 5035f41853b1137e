"""One token of matrix states on GPU, in the interpreter; see `suite.py`."""

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.implementations import Device, DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from sparse_prefix_jax.kernels.mosaic_gpu.step import step_implementation
from tests.kernels.devices import BLACKWELL, HOPPER, lowered
from tests.kernels.matrix_suite import MatrixSuite, each_operation, operation_at
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.step_suite import DecayingStepSuite


class Steps(OnGpu, MatrixSuite, DecayingStepSuite):
  """The steps of the recurrences on matrix states, in the kernel."""

  tokens = 8


class TestOfWidth64(Steps):
  usual = ("gated_delta_rule",)
  sizes, dtype, tokens = (1, 2, 64, 64), "bfloat16", 3
  implementation = interpreted(MosaicGpuConfig(columns=64))


@pytest.mark.slow_kernels
class TestOfWidth64InFloat32(Steps):
  sizes = (2, 2, 64, 64)
  implementation = interpreted(MosaicGpuConfig(columns=32))


@pytest.mark.slow_kernels
class TestOfWidth128(Steps):
  sizes, dtype = (2, 4, 128, 128), "bfloat16"
  implementation = interpreted(MosaicGpuConfig(columns=64))


@pytest.mark.slow_kernels
class TestOfMamba2(Steps):
  sizes, dtype = (1, 4, 128, 64), "bfloat16"
  implementation = interpreted(MosaicGpuConfig(columns=64))


@pytest.mark.slow_kernels
class TestOfWidth256(Steps):
  sizes, dtype = (1, 1, 256, 256), "bfloat16"
  implementation = interpreted(MosaicGpuConfig(columns=32))


def arguments(name, sizes=(2, 4, 128, 128), dtype="bfloat16", b=3):
  """Those of one step from nothing."""
  operation = operation_at(name, sizes, dtype)
  inputs = [
    jnp.zeros((b, *x.shape[1:]), x.dtype) for x in operation.tokens(0, 1)
  ]
  slots = jnp.arange(b)
  pool = jnp.zeros((9, *operation.slot), operation.pool_dtype)
  return operation.step, (*inputs, pool, slots, slots)


@each_operation
@pytest.mark.parametrize("kind", [HOPPER, BLACKWELL])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_picked_and_lowers(dtype, kind, name):
  take_step, given = arguments(name, dtype=dtype)
  program = lowered(take_step, *given, kind=kind)
  assert "mosaic_gpu" in program and f"{name}_step" in program


@pytest.mark.parametrize(
  ("k", "v", "columns"),
  [
    *((64, 64, 64), (64, 128, 64), (128, 64, 64), (128, 128, 64)),
    *((256, 256, 32), (192, 64, 32), (128, 48, 16), (128, 24, 16)),
  ],
)
def test_columns_leave_room_for_several_programs(k, v, columns):
  q, k, v = jnp.zeros((2, 1, k)), jnp.zeros((2, 1, k)), jnp.zeros((2, 1, v))
  device = Device("gpu", HOPPER)
  config = step_implementation("any").heuristic(device, q, k, v)
  assert config == MosaicGpuConfig(columns=columns)


def test_columns_do_not_depend_on_how_many_rows_there_are():
  heuristic = step_implementation("any").heuristic
  found = set()
  for b in (1, 16, 64):
    x = jnp.zeros((b, 16, 128), jnp.bfloat16)
    found.add(heuristic(Device("gpu", HOPPER), x, x, x))
  assert found == {MosaicGpuConfig(columns=64)}


@pytest.mark.parametrize(
  ("sizes", "columns", "reason"),
  [
    ((1, 1, 32, 64), 64, "takes 64, 128, 192 or 256 keys of a head, not 32"),
    ((1, 1, 320, 64), 16, "takes 64, 128, 192 or 256 keys of a head, not 320"),
    ((1, 1, 64, 24), 16, "cannot cut 24 value columns into 16"),
    ((1, 1, 64, 64), 0, "cannot cut 64 value columns into 0"),
    ((1, 1, 64, 64), 8, "cannot cut 64 value columns into 8; it takes one"),
    ((1, 1, 64, 192), 48, "cannot cut 192 value columns into 48"),
    ((1, 1, 256, 128), 128, "holds 16384 numbers of a state in registers, not"),
  ],
)
def test_what_does_not_fit_is_refused(sizes, columns, reason):
  take_step, given = arguments("gated_delta_rule", sizes)
  config = interpreted(MosaicGpuConfig(columns=columns))
  with pytest.raises(DoesNotFit, match=f"mosaic_gpu: {reason}"):
    take_step(*given, implementation=config)


def test_other_dtypes_are_refused():
  def refusal(b, dtype="float32", gates="float32"):
    x, gate = jnp.zeros((b, 1, 64), dtype), jnp.zeros((b, 1), gates)
    device, config = Device("gpu", HOPPER), MosaicGpuConfig()
    return step_implementation("any").refusal(device, config, x, x, x, gate)

  assert refusal(1) is None
  told = "takes bfloat16 and float32, and these are float16"
  assert refusal(1, dtype="float16") == told
  told = "takes decays of float32, and these are bfloat16"
  assert refusal(1, gates="bfloat16") == told
