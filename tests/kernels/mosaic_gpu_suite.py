"""The suite for Mosaic GPU kernels, in the interpreter with race detection.

The interpreter is private so far and runs at some milliseconds per product, so
the default tests of an operation are one class of few calls (`Short`), and all
of the suite is marked `slow_kernels`.

What it covers: copies, barriers, shared memory, products, where each chunk is
read and written. What it does not: it completes copies to global memory at
once, runs the programs of a grid one after another, and knows nothing of
layouts, of registers or of how much shared memory there is. That the program
is a valid one for a device is what `lowers` (here) and real compilation
(`benchmarks/aot_cuda.py`) show.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device
from tests.kernels import reference
from tests.kernels.operations import TOLERANCE
from tests.kernels.packing import Job
from tests.kernels.suite import PackedSuite, same_bits

KIND = "NVIDIA H100 80GB HBM3"


def hopper():
  """Everything inside is traced as for an H100."""
  device = jax.sharding.AbstractDevice(
    device_kind=KIND, platform="gpu", num_cores=132
  )
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
  )


def interpreted(config):
  """The config, for the interpreter with race detection."""
  params = InterpretGPUParams(detect_races=True)
  return dataclasses.replace(config, interpret=params)


class MosaicGpuSuite(PackedSuite):
  """All tests of the suite, on an abstract H100; no run may race."""

  def around(self):
    return hopper()

  def after_each(self):
    assert not interpret_pallas_call.get_races().races_found


class Short(MosaicGpuSuite):
  """One call against the recurrence, one against the bits of the first.

  Attributes:
    case: Of the operation's cases.
  """

  case: str

  def pytest_generate_tests(self, metafunc):
    """No cases: the tests of the suite that want them are not run here."""

  def _calls(self):
    operation, c = self.operation, self.operation.chunk
    pool = self.pool()
    pool[11] = operation.initial_state(1)
    choices = operation.cases[self.case]
    lengths = 2 * c + c // 3, c + 1
    inputs = [operation.tokens(i, t, **choices) for i, t in enumerate(lengths)]
    jobs = [
      Job(lengths[0], writes={0: 299, 2: 130}),
      Job(lengths[1], read=11, writes={1: 11}),
    ]
    return jobs, inputs, pool, *self.call(jobs, inputs, pool)

  def short(self):
    """Errors, foreign slots, and bits of another packing, resumed."""
    operation, c = self.operation, self.operation.chunk
    jobs, inputs, pool, outs, after = self._calls()
    limit = TOLERANCE[operation.dtype]
    befores = np.zeros(operation.slot), pool[11]
    for job, arrays, out, before in zip(jobs, inputs, outs, befores):
      expected, states = operation.reference(arrays, before)
      assert reference.relative_error(out, expected) <= limit
      for chunk, slot in job.writes.items():
        end = min((chunk + 1) * c, job.length)
        assert reference.relative_error(after[slot], states[end]) <= limit
    changed = [s for s in range(300) if not same_bits(after[s], pool[s])]
    assert changed == [11, 130, 299]
    # The first request from its first chunk on, behind the second; the second
    # without its capture.
    resumed = [Job(jobs[1].length, read=20), Job(jobs[0].length - c, read=299)]
    resumed[1].writes[1] = 299
    poisoned = self.pool()
    poisoned[20], poisoned[299] = pool[11], after[299]
    rest = [inputs[1], [x[c:] for x in inputs[0]]]
    again, later = self.call(resumed, rest, poisoned)
    assert same_bits(again[0], outs[1])
    assert same_bits(again[1], outs[0][c:])
    assert same_bits(later[299], after[130])


def lowers(implementation, operation, *shapes, **options):
  """Lowers the public entry, which must pick Mosaic GPU by itself.

  Args:
    implementation: The operation's, for the name it must have.
    operation: Called with the arrays of `shapes`, a pool and chunks.
    *shapes: Shape and dtype of each argument; the pool is the last.
    **options: Of the operation.

  Returns:
    The text of the lowered program.
  """
  n = shapes[0][0][0]
  index = jax.ShapeDtypeStruct((n,), jnp.int32)
  arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  with hopper():
    traced = jax.jit(lambda *x: operation(*x, **options)).trace(
      *arrays, Chunks(*[index] * 5)
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert implementation.config.name == "mosaic_gpu"
  assert "mosaic_gpu" in text
  return text


def device():
  """An H100, as `dispatch` sees it."""
  return Device("gpu", KIND)
