"""causal_conv1d_step on GPU, in the interpreter; see `mosaic_gpu/suite.py`."""

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.implementations import DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import operations
from tests.kernels.devices import BLACKWELL, HOPPER, lowered
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.step_suite import KernelStepSuite


class TestSteps(OnGpu, KernelStepSuite):
  operation = operations.causal_conv1d_at(256, 4, "bfloat16", 64)
  implementation = interpreted(MosaicGpuConfig(columns=128))
  tokens = 6


class TestStepsOfFloat32(TestSteps):
  operation = operations.causal_conv1d_at(256, 2, "float32", 64)
  implementation = interpreted(MosaicGpuConfig(columns=256))


def arguments(width, dtype="bfloat16"):
  operation = operations.causal_conv1d_at(width, dtype=dtype)
  slots = jnp.arange(3)
  pool = jnp.zeros((9, *operation.slot), dtype)
  return operation.step, (jnp.zeros((3, width), dtype), pool, slots, slots)


@pytest.mark.parametrize("kind", [HOPPER, BLACKWELL])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_picked_and_lowers(dtype, kind):
  step, given = arguments(384, dtype)
  assert "causal_conv1d_step" in lowered(step, *given, kind=kind)


@pytest.mark.parametrize(
  ("width", "columns", "reason"),
  [
    (96, 128, "cannot cut 96 channels into 128"),
    (128, 0, "cannot cut 128 channels into 0"),
    (2048, 2048, "takes 1024 channels per program at most, not 2048"),
  ],
)
def test_what_does_not_fit_is_refused(width, columns, reason):
  step, given = arguments(width)
  config = interpreted(MosaicGpuConfig(columns=columns))
  with pytest.raises(DoesNotFit, match=f"mosaic_gpu: {reason}"):
    step(*given, implementation=config)
