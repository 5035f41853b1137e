"""What the GPU kernels share: plans, sizes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks
from sparse_prefix_jax.kernels.diagonal_scan import diagonal_scan
from sparse_prefix_jax.kernels.implementations import DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu import devices, rows, segments
from sparse_prefix_jax.kernels.mosaic_gpu.heads import shared_bytes, sizes
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import plan, programs
from tests.kernels.devices import HOPPER, traced_for
from tests.kernels.matrix_suite import operation_at
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
  check_outputs(y, expected)


def test_odd_segments_do_what_the_packed_scan_does():
  random, n = np.random.default_rng(0), len(ODD["read"])
  x = random.standard_normal((n, 64, 128), np.float32)
  log_decay = -np.abs(random.standard_normal(x.shape, np.float32))
  pool = poisoned_pool((9, 128))
  pool[5] = random.standard_normal(128)
  arguments = [jnp.asarray(u) for u in (x, log_decay, pool)]
  config = interpreted(MosaicGpuConfig(columns=128))
  with traced_for(HOPPER):
    y, states = diagonal_scan(*arguments, odd_chunks(), implementation=config)
  expected, wanted = diagonal_scan(
    *arguments, odd_chunks(), implementation="xla"
  )
  written = [slot for slot in ODD["write"] if slot != NONE]
  np.testing.assert_allclose(
    states[jnp.array(written)], wanted[jnp.array(written)], rtol=1e-6, atol=1e-6
  )
  for slot in set(range(9)) - set(written):
    assert bits(states[slot]) == bits(pool[slot])
  check_outputs(y, expected)


def test_more_segments_than_programs_are_all_scanned(monkeypatch):
  # Each program is interpreted by threads of its own: 4 show what 16 do.
  monkeypatch.setattr(segments, "_SEGMENTS", 4)
  n = 2 * programs(1_000) + 3
  random = np.random.default_rng(0)
  x = random.standard_normal((n, 64, 128), np.float32)
  log_decay = -np.abs(random.standard_normal(x.shape, np.float32))
  # Every third chunk goes on from the one before it.
  index = jnp.arange(n, dtype=jnp.int32)
  read = jnp.where(index % 3 == 2, CARRY, ZERO)
  chunks = Chunks(read, index, 1 + index % 2, read, read)
  arguments = [jnp.asarray(u) for u in (x, log_decay, poisoned_pool((n, 128)))]
  config = interpreted(MosaicGpuConfig(columns=128))
  with traced_for(HOPPER):
    y, states = diagonal_scan(*arguments, chunks, implementation=config)
  expected, wanted = diagonal_scan(*arguments, chunks, implementation="xla")
  np.testing.assert_allclose(states, wanted, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def check_outputs(y, expected):
  """Outputs of odd chunks are right, and zero at padding."""
  for chunk, length in enumerate(ODD["length"]):
    np.testing.assert_allclose(
      y[chunk, :length], expected[chunk, :length], rtol=1e-6, atol=1e-6
    )
    assert not np.any(y[chunk, length:])


@pytest.mark.parametrize("operands", [2, 3, 4, 5])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("gpu", [devices.HOPPER, devices.BLACKWELL])
def test_sizes_fit_into_shared_memory(gpu, width, operands):
  config = sizes(gpu, width, 2**20, 4, operands)
  taken = shared_bytes(gpu, width, config.columns, config.stages, 4, operands)
  assert taken < devices.SHARED_BYTES


def test_few_heads_are_cut_into_more_programs():
  gpu = devices.BLACKWELL
  enough = 64 * gpu.multiprocessors
  assert sizes(gpu, 64, enough - 64, 4, 3) == MosaicGpuConfig(columns=32)
  assert sizes(gpu, 64, enough, 4, 3) == MosaicGpuConfig(columns=64)


@pytest.mark.parametrize("width", [64, 128])
def test_states_in_registers_have_64_columns_however_few_heads_there_are(width):
  assert sizes(devices.HOPPER, width, 64, 4, 3).columns == 64


@pytest.mark.parametrize(
  ("sizes", "reason"),
  [
    ({"columns": 128}, r"takes \d+ bytes of shared memory"),
    ({"columns": 8}, "cannot cut 256 value columns into 8; 16 are the fewest"),
    ({"columns": 0}, "cannot cut 256 value columns into 0"),
    ({"columns": 96}, "cannot cut 256 value columns into 96"),
    ({"columns": 16, "stages": 0}, "takes one stage or more, not 0"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, reason):
  operation = operation_at("gated_delta_rule", (1, 1, 256, 256), "bfloat16")
  config = interpreted(MosaicGpuConfig(**sizes))
  with pytest.raises(DoesNotFit, match=f"mosaic_gpu: {reason}"):
    operation.packed(*operation.empty_call(1, 1), implementation=config)


@pytest.mark.parametrize(
  ("size", "dtype", "stages"),
  [(64, "float32", 2), (128, "float32", 1), (128, "bfloat16", 2)],
)
def test_rows_have_a_second_stage_where_there_is_room(size, dtype, stages):
  x = jnp.zeros((1, size, 128), dtype)
  number_bytes = x.dtype.itemsize + 4
  config = rows.sizes(x, number_bytes)
  assert config == MosaicGpuConfig(columns=128, stages=stages)
  assert rows.unfit(x, config, number_bytes) is None


def test_rows_that_do_not_fit_are_refused():
  x, config = jnp.zeros((1, 256, 128)), MosaicGpuConfig(columns=128, stages=1)
  reason = rows.unfit(x, config, 8)
  assert reason is not None
  assert reason.startswith("takes 262144 bytes of shared memory")
  reason = rows.unfit(x, MosaicGpuConfig(columns=0), 4)
  told = "cannot cut 128 channels into 0; it takes a multiple of 128 that "
  assert reason == told + "divides them"


@pytest.mark.parametrize("name", ["gated_delta_rule", "kimi_delta_attention"])
def test_every_result_of_a_product_is_tied_to_the_wait_for_it(name):
  operation = operation_at(name, (1, 1, 64, 64), "bfloat16")
  with traced_for(HOPPER):
    call = functools.partial(operation.packed, implementation="mosaic_gpu")
    program = str(jax.make_jaxpr(call)(*operation.empty_call(1, 1)))
  waits = program.count("wgmma_accumulator_deref")
  assert waits > 3
  tied = re.findall(
    r"(\w+):f32\S* = wgmma_accumulator_deref.*\n"
    r"\s*\w+:f32\S* = optimization_barrier \1\b",
    program,
  )
  assert len(tied) == waits
