"""diagonal_scan_step on GPU, in the interpreter; see `mosaic_gpu/suite.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.diagonal_scan import (
  diagonal_scan_step,
  mosaic_gpu_step,
)
from sparse_prefix_jax.kernels.implementations import Device, DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import operations
from tests.kernels.devices import BLACKWELL, HOPPER, lowered, traced_for
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.step_suite import DecayingStepSuite


class Steps(OnGpu, DecayingStepSuite):
  tokens = 6


class TestDiagonal(Steps):
  operation = operations.diagonal_scan_at(256, "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=128))


class TestSelective(Steps):
  operation = operations.selective_scan_at(128, 16, "bfloat16")
  implementation = interpreted(MosaicGpuConfig(columns=64))


class TestSelectiveOfFloat32(Steps):
  operation = operations.selective_scan_at(128, 8, "float32")
  implementation = interpreted(MosaicGpuConfig(columns=128))


def arguments(operation, b=3):
  inputs = [
    jnp.zeros((b, *x.shape[1:]), x.dtype) for x in operation.tokens(0, 1)
  ]
  slots = jnp.arange(b)
  return *inputs, jnp.zeros((9, *operation.slot)), slots, slots


@pytest.mark.parametrize("kind", [HOPPER, BLACKWELL])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_picked_and_lowers(dtype, kind):
  one = operations.diagonal_scan_at(384, dtype)
  text = lowered(one.step, *arguments(one), kind=kind)
  assert "diagonal_scan_step" in text
  many = operations.selective_scan_at(256, 16, dtype)
  text = lowered(many.step, *arguments(many), kind=kind)
  assert "selective_scan_step" in text


@pytest.mark.parametrize(
  ("width", "states", "columns"),
  [(512, 16, 256), (512, 64, 64), (384, 16, 128), (64, 8, 64), (256, 24, 128)],
)
def test_a_tile_of_mambas_form_fits_registers(width, states, columns):
  x, rate = jnp.zeros((2, width)), jnp.zeros((width, states))
  given = (x, x, None, None, None, rate, None, None)
  config = mosaic_gpu_step.heuristic(Device("gpu", HOPPER), *given)
  assert config == MosaicGpuConfig(columns=columns)


@pytest.mark.parametrize(
  ("width", "states", "columns", "reason"),
  [
    (96, 8, 64, "cannot cut 96 channels into 64"),
    (96, 8, 96, "cannot cut 96 channels into 96"),
    (128, 12, 64, "takes a multiple of 8 states per channel, not 12"),
    (128, 64, 128, "holds 4096 numbers in registers, not 128 x 64"),
  ],
)
def test_what_does_not_fit_is_refused(width, states, columns, reason):
  operation = operations.selective_scan_at(width, states)
  config = interpreted(MosaicGpuConfig(columns=columns))
  with pytest.raises(DoesNotFit, match=f"mosaic_gpu: {reason}"):
    operation.step(*arguments(operation), implementation=config)


def test_gradients_reach_what_a_token_and_the_channels_bring():
  operation = operations.selective_scan_at(64, 8)
  x, log_decay, b, c = map(jnp.asarray, operation.tokens(0, 1))
  pool, slot = jnp.asarray(operation.initial_state(0))[None], jnp.array([0])
  given = {"rate": jnp.full((64, 8), 0.5), "b": b, "c": c}

  def loss(x, log_decay, pool, given, implementation):
    y, after = diagonal_scan_step(
      x, log_decay, pool, slot, slot, **given, implementation=implementation
    )
    return jnp.sum(y**2) + jnp.sum(after**2)

  kernel = interpreted(MosaicGpuConfig(columns=64))
  with traced_for(HOPPER):
    found, wanted = (
      jax.grad(loss, argnums=(0, 1, 2, 3))(x, log_decay, pool, given, chosen)
      for chosen in (kernel, "xla")
    )
  # The loss is not linear, so what it is of differs in the last bits.
  jax.tree.map(
    lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5),
    found,
    wanted,
  )
