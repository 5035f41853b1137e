"""Mosaic TPU kernels without a TPU: interpreted, or lowered for one."""

import jax
import jax.numpy as jnp
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from sparse_prefix_jax.kernels.mosaic_tpu import Config
from tests.kernels.packing import chunks_of
from tests.kernels.suite import PackedSuite

INTERPRET = pltpu.InterpretParams(
  detect_races=True,
  out_of_bounds_reads="raise",
  uninitialized_memory="nan",
  dma_execution_mode="on_wait",
)

TPUS = ("TPU v5 lite", "TPU v5p", "TPU v6 lite")


def assert_no_race():
  """Whether every copy so far was waited for before its memory was used."""
  assert not interpret_pallas_call.races.races_found


class MosaicTpuSuite(PackedSuite):
  """The suite of all packed operations, in the interpreter."""

  implementation = Config(interpret=INTERPRET)

  def after_each(self):
    assert_no_race()


class ChannelsSuite(MosaicTpuSuite):
  """For operations on channels, which come in blocks of 128."""

  implementation = Config(interpret=INTERPRET, block=128)


def lowered(function, *arguments, device):
  """The program for a TPU that is not there, as text."""
  mesh = jax.sharding.AbstractMesh(
    (1,),
    ("x",),
    abstract_device=jax.sharding.AbstractDevice(
      device_kind=device, num_cores=1, platform="tpu"
    ),
    axis_types=(jax.sharding.AxisType.Auto,),
  )
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("tpu",)).as_text()


def assert_lowers(operation, device, n=2, slots=4):
  """Whether the public entry picks the kernel by itself, and it lowers."""
  c = operation.chunk
  arrays = [
    jnp.zeros((n, c, *x.shape[1:]), x.dtype) for x in operation.tokens(0, 1)
  ]
  pool = jnp.zeros((slots, *operation.slot), operation.pool_dtype)
  chunks = chunks_of([], n, c)
  text = lowered(operation.packed, *arrays, pool, chunks, device=device)
  assert text.count("tpu_custom_call") == 1
