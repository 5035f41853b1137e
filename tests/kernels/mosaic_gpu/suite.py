"""The suite for Mosaic GPU kernels, in the interpreter with race detection.

The interpreter is private so far and runs at some milliseconds per product, so
the default tests of an operation are two calls (`check_short`), and all of the
suite is marked `slow_kernels`.

What it covers: copies, barriers, shared memory, products, where each chunk is
read and written. What it does not: it completes copies to global memory at
once, runs the programs of a grid one after another, and knows nothing of
layouts, of registers or of how much shared memory there is. That the program
is a valid one for a device is what `check_lowers` and real compilation
(`benchmarks/aot_cuda.py`) show.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from sparse_prefix_jax.kernels.chunks import Chunks
from tests.kernels import reference
from tests.kernels.devices import HOPPER, traced_for
from tests.kernels.operations import TOLERANCE
from tests.kernels.packing import Job
from tests.kernels.suite import PackedSuite, same_bits


def interpreted(config):
  """The config, for the interpreter with race detection."""
  params = InterpretGPUParams(detect_races=True)
  return dataclasses.replace(config, interpret=params)


class OnGpu:
  """Runs are traced as for an H100, or another kind, and none may race."""

  kind = HOPPER

  def around(self):
    return traced_for(self.kind)

  def after_each(self):
    assert not interpret_pallas_call.get_races().races_found


class MosaicGpuSuite(OnGpu, PackedSuite):
  """All tests of the suite."""


def check_short(operation, config, case, kind=HOPPER):
  """One call against the recurrence, one against the bits of the first.

  Args:
    operation: What is tested, at which shape.
    config: Sizes.
    case: Of the operation's cases.
    kind: Of the device that it is traced for.
  """
  suite, c = MosaicGpuSuite(), operation.chunk
  suite.kind = kind
  suite.operation, suite.implementation = operation, interpreted(config)
  pool = suite.pool()
  pool[11] = operation.initial_state(1)
  lengths, choices = (2 * c + c // 3, c + 1), operation.cases[case]
  inputs = [operation.tokens(i, t, **choices) for i, t in enumerate(lengths)]
  jobs = [
    Job(lengths[0], writes={0: 299, 2: 130}),
    Job(lengths[1], read=11, writes={1: 11}),
  ]
  outs, after = suite.call(jobs, inputs, pool, n=6)
  limit, befores = (
    TOLERANCE[operation.dtype],
    (np.zeros(operation.slot), pool[11]),
  )
  for job, arrays, out, before in zip(jobs, inputs, outs, befores, strict=True):
    expected, states = operation.reference(arrays, before)
    assert reference.relative_error(out, expected) <= limit
    for chunk, slot in job.writes.items():
      end = min((chunk + 1) * c, job.length)
      assert reference.relative_error(after[slot], states[end]) <= limit
  changed = [s for s in range(300) if not same_bits(after[s], pool[s])]
  assert changed == [11, 130, 299]
  # The first request from its second chunk on, in its own slot, behind the
  # second, which captures nothing this time.
  fresh = suite.pool()
  fresh[20], fresh[299] = pool[11], after[299]
  jobs = [
    Job(lengths[1], read=20),
    Job(lengths[0] - c, read=299, writes={1: 299}),
  ]
  rest = [inputs[1], [x[c:] for x in inputs[0]]]
  again, later = suite.call(jobs, rest, fresh, n=6)
  assert same_bits(again[0], outs[1])
  assert same_bits(again[1], outs[0][c:])
  assert same_bits(later[299], after[130])


def check_lowers(operation, pool, arrays, **options):
  """The public entry picks Mosaic GPU for an H100, and lowers to CUDA.

  Args:
    operation: Called with arrays, pool and chunks.
    pool: Shape and dtype of the pool.
    arrays: Shape and dtype of each argument before it.
    **options: Of the operation; shapes and dtypes as well.
  """
  shaped = [jax.ShapeDtypeStruct(*x) for x in (*arrays, pool)]
  options = {k: jax.ShapeDtypeStruct(*x) for k, x in options.items()}
  index = jax.ShapeDtypeStruct(arrays[0][0][:1], jnp.int32)
  chunks = Chunks(*[index] * 5)
  with traced_for(HOPPER):
    traced = jax.jit(operation).trace(*shaped, chunks, **options)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "mosaic_gpu" in text
