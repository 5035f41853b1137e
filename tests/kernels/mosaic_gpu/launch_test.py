"""What the Hopper kernels share: plans, sizes, devices."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks
from sparse_prefix_jax.kernels.implementations import Device
from sparse_prefix_jax.kernels.mosaic_gpu.heads import (
  SHARED_BYTES,
  shared_bytes,
  sizes,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig,
  refused_device,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import plan
from tests.kernels.devices import HOPPER, traced_for
from tests.kernels.mosaic_gpu.suite import interpreted
from tests.kernels.packing import bits, poisoned_pool

# It begins with CARRY; a chunk of no tokens captures; one of no tokens reads,
# and the next goes on from it; the last does nothing.
ODD = {
  "read": (CARRY, CARRY, 5, CARRY, ZERO, CARRY, CARRY),
  "write": (NONE, 2, 7, NONE, NONE, 3, NONE),
  "length": (64, 10, 0, 64, 63, 0, 0),
}


def odd_chunks():
  read, write, length = (jnp.array(x, jnp.int32) for x in ODD.values())
  return Chunks(read, write, length, read, read)


def test_a_plan_of_odd_chunks():
  read, write, length, live, stop = np.asarray(plan(odd_chunks()))
  assert read.tolist() == [ZERO, *ODD["read"][1:]]
  assert write.tolist() == list(ODD["write"])
  assert length.tolist() == list(ODD["length"])
  assert stop.tolist() == [2, 2, 4, 4, 7, 7, 7]
  assert live.tolist() == [2, 2, 4, 4, 6, 6, 6]


def test_odd_chunks_do_what_the_packed_scan_does():
  random, n = np.random.default_rng(0), len(ODD["read"])
  x = random.standard_normal((n, 64, 128), np.float32)
  weight = random.standard_normal((4, 128), np.float32)
  pool = poisoned_pool((9, 3, 128))
  pool[5] = random.standard_normal((3, 128))
  arguments = [jnp.asarray(u) for u in (x, weight, pool)]
  config = interpreted(MosaicGpuConfig(columns=128))
  with traced_for(HOPPER):
    y, states = causal_conv1d(*arguments, odd_chunks(), implementation=config)
  expected, wanted = causal_conv1d(
    *arguments, odd_chunks(), implementation="xla"
  )
  assert bits(states) == bits(wanted)
  for chunk, length in enumerate(ODD["length"]):
    np.testing.assert_allclose(
      y[chunk, :length], expected[chunk, :length], rtol=1e-6, atol=1e-6
    )
    assert not np.any(y[chunk, length:])


@pytest.mark.parametrize("operands", [2, 3, 4, 5])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_sizes_fit_into_shared_memory(width, operands):
  config = sizes(width, 4, operands)
  taken = shared_bytes(width, config.columns, config.stages, 4, operands)
  assert taken < SHARED_BYTES


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA B200"])
def test_other_devices_are_refused(kind):
  reason = refused_device(Device("gpu", kind), MosaicGpuConfig())
  assert reason is not None
  assert kind in reason
  assert refused_device(Device("gpu", HOPPER), MosaicGpuConfig()) is None
