"""Mosaic TPU kernels without a TPU: interpreted, or lowered for one."""

from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config
from tests.kernels.devices import lowered
from tests.kernels.suite import PackedSuite

INTERPRET = pltpu.InterpretParams(
  detect_races=True,
  out_of_bounds_reads="raise",
  uninitialized_memory="nan",
  dma_execution_mode="on_wait",
)


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


def assert_lowers(operation, device, n=2, slots=4):
  """Whether the public entry picks the kernel by itself, and it lowers."""
  call = operation.empty_call(n, slots)
  text = lowered(operation.packed, *call, kind=device)
  assert text.count("tpu_custom_call") == 1
