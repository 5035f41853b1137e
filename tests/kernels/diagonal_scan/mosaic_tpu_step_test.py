"""diagonal_scan_step on TPU: against the recurrence, and lowered."""

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.diagonal_scan.mosaic_tpu_step import STEP
from sparse_prefix_jax.kernels.implementations import Device, DoesNotFit
from sparse_prefix_jax.kernels.mosaic_tpu.step import StepConfig
from tests.kernels import operations
from tests.kernels.devices import TPUS, lowered
from tests.kernels.mosaic_tpu.suite import INTERPRET, assert_no_race
from tests.kernels.step_suite import DecayingStepSuite

FLOAT32 = operations.diagonal_scan_at(256)
SELECTIVE = operations.selective_scan_at(256, 16)


class Steps(DecayingStepSuite):
  """The suite of all steps, in the interpreter."""

  implementation = StepConfig(interpret=INTERPRET, block=128)
  tokens = 8

  def after_each(self):
    assert_no_race()


class TestMosaicTpu(Steps):
  operation = FLOAT32


class TestMosaicTpuSelective(Steps):
  operation = SELECTIVE


def test_more_rows_than_a_step_takes_have_the_same_bits():
  """Eight and the ninth: one more step, most of whose rows are missing."""
  suite = TestMosaicTpu()
  inputs, pool = FLOAT32.tokens(0, 9), suite.pool()
  slots = jnp.arange(9)
  out, after = suite.step(*inputs, pool, slots, slots + 10)
  last = [x[8:] for x in inputs]
  again, later = suite.step(*last, pool, slots[8:], slots[8:] + 10)
  assert again.tobytes() == out[8:].tobytes()
  assert later[18].tobytes() == after[18].tobytes()


@pytest.mark.parametrize("kind", TPUS)
@pytest.mark.parametrize("operation", [FLOAT32, SELECTIVE])
def test_is_picked_and_lowers(operation, kind):
  text = lowered(operation.step, *arguments(operation), kind=kind)
  assert text.count("tpu_custom_call") == 1 and "diagonal_scan_step" in text


def arguments(operation, b=3):
  """Those of one step from nothing."""
  inputs = [
    jnp.zeros((b, *x.shape[1:]), x.dtype) for x in operation.tokens(0, 1)
  ]
  slots = jnp.arange(b)
  return *inputs, jnp.zeros((9, *operation.slot)), slots, slots


@pytest.mark.parametrize(
  ("operation", "config", "reason"),
  [
    (operations.diagonal_scan_at(192), {}, "192 channels are not a multiple"),
    (FLOAT32, {"block": 64}, "block 64 is not a multiple of 128 dividing 256"),
    (FLOAT32, {"block": 128, "cores": 3}, "3 cores do not divide 2 blocks of"),
    (
      operations.selective_scan_at(256, 12),
      {"block": 128},
      "12 states per channel are not 8, 16, ... or 64",
    ),
    (
      operations.selective_scan_at(8192, 64),
      {"block": 8192},
      "states of a step take 2097152 bytes, above 1048576",
    ),
    (
      operations.diagonal_scan_at(256, "float16"),
      {"block": 128},
      "inputs of float16 are neither float32 nor bfloat16",
    ),
  ],
)
def test_what_does_not_fit_is_refused(operation, config, reason):
  config = StepConfig(interpret=INTERPRET, **config)
  with pytest.raises(DoesNotFit, match=f"mosaic_tpu: {reason}"):
    operation.step(*arguments(operation), implementation=config)


def test_other_dtypes_are_refused():
  x, slots = jnp.zeros((1, 128)), jnp.zeros(1, jnp.int32)
  pool = jnp.zeros((1, 128))
  device = Device("tpu", TPUS[0])

  def refusal(log_decay, pool):
    given = x, log_decay, pool, slots, slots, None, None, None
    return STEP.refusal(device, StepConfig(block=128), *given)

  assert refusal(x, pool) is None
  half = x.astype(jnp.bfloat16)
  assert refusal(half, pool) == "decays are bfloat16 and must be float32"
  told = "states are bfloat16 and must be float32"
  assert refusal(x, pool.astype(jnp.bfloat16)) == told


@pytest.mark.parametrize(
  ("kind", "operation", "config"),
  [
    (TPUS[0], FLOAT32, StepConfig(block=256)),
    (TPUS[1], FLOAT32, StepConfig(block=128, cores=2)),
    (TPUS[0], operations.selective_scan_at(8192, 64), StepConfig(block=4096)),
  ],
)
def test_a_step_takes_the_channels_of_a_core_if_they_fit(
  kind, operation, config
):
  x, log_decay, *_, pool, _, _ = arguments(operation)
  assert STEP.heuristic(Device("tpu", kind), x, log_decay, pool) == config


@pytest.mark.slow_kernels
class TestMosaicTpuOfBfloat16(Steps):
  operation = operations.diagonal_scan_at(128, "bfloat16")


@pytest.mark.slow_kernels
class TestMosaicTpuSelectiveOfBfloat16(Steps):
  operation = operations.selective_scan_at(128, 8, "bfloat16")
  implementation = StepConfig(interpret=INTERPRET, block=128)


@pytest.mark.slow_kernels
class TestMosaicTpuOfTwoCores(Steps):
  operation = operations.selective_scan_at(512, 8)
  implementation = StepConfig(interpret=INTERPRET, block=128, cores=2)
