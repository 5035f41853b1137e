"""causal_conv1d_step on GPU, in the interpreter; see `mosaic_gpu/suite.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d_step
from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from sparse_prefix_jax.kernels.implementations import DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import operations
from tests.kernels.devices import BLACKWELL, HOPPER, lowered, traced_for
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.step_suite import KernelStepSuite
from tests.trees import assert_same_bits


class TestSteps(OnGpu, KernelStepSuite):
  operation = operations.causal_conv1d_at(256, 4, "bfloat16", 64)
  implementation = interpreted(MosaicGpuConfig(columns=128))
  tokens = 6


class TestStepsOfFloat32(TestSteps):
  operation = operations.causal_conv1d_at(256, 2, "float32", 64)
  implementation = interpreted(MosaicGpuConfig(columns=256))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_silu_in_the_kernel_is_that_of_its_outputs(dtype):
  operation, slots = operations.causal_conv1d_at(256, dtype=dtype), [0, ZERO, 2]
  (x,), window = operation.tokens(0, 3), operation.slot[0]
  weight = jax.random.normal(jax.random.key(0), (window + 1, 256))
  pool = np.stack([operation.initial_state(i) for i in range(3)])
  given = (jnp.asarray(x), weight.astype(dtype), jnp.asarray(pool))
  read, write = jnp.array(slots), jnp.array([1, NONE, 2])

  def run(silu):
    kernel = interpreted(MosaicGpuConfig(columns=128))
    step = functools.partial(
      causal_conv1d_step, silu=silu, implementation=kernel
    )
    with traced_for(HOPPER):
      return jax.tree.map(np.asarray, jax.jit(step)(*given, read, write))

  (y, after), (opened, same) = run(silu=False), run(silu=True)
  wide = y.astype(np.float64)
  expected = wide / (1 + np.exp(-wide))
  assert np.abs(opened - expected).max() <= 1e-6 * np.abs(expected).max()
  assert_same_bits(same, after)


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
