"""One set of tests for every implementation of every packed operation.

A test class names an operation (and an implementation) and inherits the rest:

    class TestGatedDeltaRule(PackedSuite):
      operation = operations.gated_delta_rule_at()

Whoever needs a device of its own or an interpreter overrides `around`, and
`after_each` for what has to hold after every run.
"""

import contextlib
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import ZERO
from tests.kernels import reference
from tests.kernels.operations import TOLERANCE, Operation, compiled
from tests.kernels.packing import (
  Job,
  bits,
  chunks_of,
  pack,
  poisoned_pool,
  unpack,
)

SLOTS = 300


def same_bits(x, y):
  """Whether two arrays, or trees of them, have the same bytes."""
  return bits(x) == bits(y)


@functools.cache
def cold(suite, operation):
  """One request alone: inputs, outputs, and its state per chunk."""
  alone, c = suite(), operation.chunk
  alone.operation = operation
  length = 4 * c + c // 3
  inputs = operation.tokens(5, length)
  job = Job(length, writes={i: i for i in range(5)})
  (out,), pool = alone.call([job], [inputs], alone.pool())
  return inputs, out, pool[:5]


class PackedSuite:
  """Right, of one set of bits, and careful with slots that are not its own.

  Attributes:
    operation: What is tested, at which shape.
    implementation: A name or a config; None for the best that fits.
    packed: Chunks of a call.
    cases: Names of the operation's cases to try; None for all.
    tolerance: Of errors, where it is less than that of the dtype.
  """

  operation: Operation
  implementation = None
  packed = 8
  cases = None
  tolerance = None

  def pytest_generate_tests(self, metafunc):
    if "case" in metafunc.fixturenames:
      metafunc.parametrize("case", self.cases or list(self.operation.cases))

  def around(self):
    """Entered around every run."""
    return contextlib.nullcontext()

  def after_each(self):
    """Called after every run."""

  def call(self, jobs, inputs, pool, n=None):
    """Runs jobs packed together: outputs per job, and the pool."""
    n, c = n or self.packed, self.operation.chunk
    arrays = [pack(jobs, x, n, c) for x in zip(*inputs, strict=True)]
    run = compiled(self.operation.packed, self.implementation)
    with self.around():
      out, pool = run(*arrays, jnp.asarray(pool), chunks_of(jobs, n, c))
      out, pool = np.asarray(out), np.asarray(pool)
    self.after_each()
    outs = unpack(jobs, out, c)
    assert all(np.isfinite(x).all() for x in outs)
    return outs, pool

  def pool(self):
    """Slots of NaN and of -0.0."""
    dtype = jnp.dtype(self.operation.pool_dtype)
    return poisoned_pool((SLOTS, *self.operation.slot), dtype)

  def jobs(self):
    """Ends inside a chunk; resumes and ends on the lattice; a token later."""
    c = self.operation.chunk
    return (
      Job(2 * c + c // 3, writes={0: 299, 1: 7, 2: 130}),
      Job(c, read=11, writes={0: 12}),
      Job(2 * c + 1, read=200, writes={2: 200}),
    )

  def three_requests(self, **choices):
    """The jobs, their inputs, the pool that they begin with."""
    pool, jobs = self.pool(), self.jobs()
    pool[11], pool[200] = map(self.operation.initial_state, (1, 2))
    inputs = [
      self.operation.tokens(seed, job.length, **choices)
      for seed, job in enumerate(jobs)
    ]
    return jobs, inputs, pool

  def test_equals_the_recurrence(self, case, record_property):
    operation, c = self.operation, self.operation.chunk
    jobs, inputs, pool = self.three_requests(**operation.cases[case])
    outs, after = self.call(jobs, inputs, pool)
    errors = []
    for job, arrays, out in zip(jobs, inputs, outs, strict=True):
      before = pool[job.read] if job.read != ZERO else np.zeros(operation.slot)
      expected, states = operation.reference(arrays, before)
      errors.append(reference.relative_error(out, expected))
      for chunk, slot in job.writes.items():
        end = min((chunk + 1) * c, job.length)
        errors.append(reference.relative_error(after[slot], states[end]))
    record_property("error", float(np.max(errors)))  # NaN stays NaN
    most = self.tolerance or TOLERANCE[operation.dtype]
    assert all(error <= most for error in errors)

  def test_slots_not_written_keep_their_bits(self):
    jobs, inputs, pool = self.three_requests()
    _, after = self.call(jobs, inputs, pool)
    written = sorted(s for job in jobs for s in job.writes.values())
    changed = [s for s in range(SLOTS) if not same_bits(after[s], pool[s])]
    assert changed == written

  @pytest.mark.parametrize("captures", [{}, {0: 299, 3: 0, 4: 7}])
  def test_capture_changes_no_bit(self, captures):
    inputs, expected, states = cold(type(self), self.operation)
    job = Job(len(expected), writes=captures)
    (out,), pool = self.call([job], [inputs], self.pool())
    assert same_bits(out, expected)
    for chunk, slot in captures.items():
      assert same_bits(pool[slot], states[chunk])

  @pytest.mark.parametrize("done", [1, 3, 4])
  def test_resumed_has_the_bits_of_cold(self, done):
    inputs, expected, states = cold(type(self), self.operation)
    start, pool = done * self.operation.chunk, self.pool()
    pool[9] = states[done - 1]
    job = Job(len(expected) - start, read=9, writes={4 - done: 9})  # its own
    (out,), pool = self.call([job], [[x[start:] for x in inputs]], pool)
    assert same_bits(out, expected[start:])
    assert same_bits(pool[9], states[4])

  @pytest.mark.parametrize("place", [0, 2])
  def test_any_packing_has_the_bits_of_alone(self, place):
    inputs, expected, states = cold(type(self), self.operation)
    operation, c = self.operation, self.operation.chunk
    jobs = [Job(c + 2, writes={0: 8}), Job(5, read=20, writes={0: 21})]
    others = [operation.tokens(6, c + 2), operation.tokens(7, 5)]
    jobs.insert(place, Job(len(expected), writes={4: 299}))
    others.insert(place, inputs)
    pool = self.pool()
    pool[20] = operation.initial_state(0)
    outs, pool = self.call(jobs, others, pool)
    assert same_bits(outs[place], expected)
    assert same_bits(pool[299], states[4])

  def test_another_number_of_chunks_has_the_same_bits(self):
    inputs, expected, _ = cold(type(self), self.operation)
    job = Job(len(expected))
    (out,), _ = self.call([job], [inputs], self.pool(), n=self.packed + 3)
    assert same_bits(out, expected)


class InPlaceSuite:
  """The pool is updated where it lies.

  Attributes:
    operation: What is tested, at which shape.
    implementation: A name or a config; None for the best that fits.
  """

  operation: Operation
  implementation = None

  def memory(self, slots, n=4):
    """Bytes of the compiled operation on a donated pool, and of that pool."""
    operation, c = self.operation, self.operation.chunk
    inputs = [np.stack([x] * n) for x in operation.tokens(0, c)]
    pool = jax.ShapeDtypeStruct(
      (slots, *operation.slot), jnp.dtype(operation.pool_dtype)
    )
    run = jax.jit(
      functools.partial(operation.packed, implementation=self.implementation),
      donate_argnums=len(inputs),
    )
    lowered = run.lower(*inputs, pool, chunks_of([], n, c))
    bytes_of_pool = pool.size * pool.dtype.itemsize
    return lowered.compile().memory_analysis(), bytes_of_pool

  def test_the_pool_is_updated_in_place(self):
    few, bytes_of_few = self.memory(8)
    many, bytes_of_many = self.memory(4096)
    assert few.alias_size_in_bytes == bytes_of_few
    assert many.alias_size_in_bytes == bytes_of_many
    # How many states are captured is data: only the slots could cost anything.
    # (The compiler may lay out the inputs' temporaries otherwise beside a pool
    # of another size; a copy of the pool would be 512 times the small one.)
    growth = many.temp_size_in_bytes - few.temp_size_in_bytes
    assert abs(growth) < bytes_of_few, growth


class CoreSuite:
  """The differentiable core: bits of serving, gradients of the recurrence.

  Attributes:
    operation: What is tested, at which shape.
    choices: Of the operation's tokens.
  """

  operation: Operation
  choices: ClassVar = {"keys": "correlated", "decay": "mixed"}

  def packed_inputs(self, t):
    """Inputs of one request, bare and packed, and the lengths of its chunks."""
    c, job = self.operation.chunk, Job(t)
    inputs = self.operation.tokens(3, t, **self.choices)
    n = -(-t // c)
    packed = [pack([job], [x], n, c) for x in inputs]
    return inputs, packed, chunks_of([job], n, c).length

  def test_the_core_has_the_bits_of_the_packed_form(self):
    c = self.operation.chunk
    t = 3 * c + c // 3
    _, packed, length = self.packed_inputs(t)
    state = self.operation.initial_state(0)
    pool = np.zeros((9, *self.operation.slot), state.dtype)
    pool[0] = state
    job = Job(t, read=0, writes={i: i + 1 for i in range(4)})
    run = compiled(self.operation.packed, None)
    out, pool = run(*packed, pool, chunks_of([job], 4, c))

    @jax.jit
    def core(packed, state):
      return self.operation.core(
        *packed, length, initial_state=state, capture_at=[4, 1, 2]
      )

    differentiated, _ = jax.vjp(core, packed, jnp.asarray(state))
    for scanned in (core(packed, state), differentiated):
      got = unpack([job], scanned.out, c)
      assert same_bits(got, unpack([job], out, c))
      assert same_bits(scanned.state, pool[4])
      assert same_bits(scanned.captured, np.asarray(pool)[[4, 1, 2]])

  @pytest.mark.usefixtures("little_optimisation")
  def test_gradients_equal_those_of_the_recurrence(self):
    operation, c = self.operation, self.operation.chunk
    t = c + c // 2
    inputs, packed, length = self.packed_inputs(t)
    state, random = operation.initial_state(0), np.random.default_rng(1)
    d_out = random.standard_normal(operation.reference(inputs, state)[0].shape)
    d_states = np.zeros((t + 1, *operation.slot))
    d_states[c], d_states[t] = random.standard_normal((2, *operation.slot))
    # Rows past the length do not reach the loss: their weight is zero.
    weight = pack([Job(t)], [d_out.astype(np.float32)], 2, c, padding=0)
    kept = d_states[[c, t]].astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(packed, state):
      scanned = operation.core(
        *packed, length, initial_state=state, capture_at=[1]
      )
      loss = jnp.sum(scanned.out * weight) + jnp.sum(scanned.state * kept[1])
      return loss + jnp.sum(scanned.captured[0] * kept[0])

    got, got_state = gradients(tuple(packed), jnp.asarray(state))
    want, want_state = reference.gradients(
      operation.token, inputs, state, d_out, d_states
    )
    for gradient, expected in zip(got, want, strict=True):
      assert np.isfinite(gradient).all()
      (real,) = unpack([Job(t)], gradient, c)
      assert reference.relative_error(real, expected) <= 1e-4
    assert reference.relative_error(got_state, want_state) <= 1e-4

  @pytest.mark.usefixtures("little_optimisation")
  def test_gradients_pass_through_jit_and_checkpoint(self):
    self.assert_gradients_pass_through()

  def assert_gradients_pass_through(self):
    """The gradient of the loss as it is, and under both transformations."""
    c = self.operation.chunk
    _, packed, length = self.packed_inputs(c + c // 2)
    state = jnp.asarray(self.operation.initial_state(0))
    real = (jnp.arange(c)[None] < length[:, None]).astype(jnp.float32)

    def loss(packed, state, length):
      scanned = self.operation.core(*packed, length, initial_state=state)
      weight = real.reshape(*real.shape, *(1,) * (scanned.out.ndim - 2))
      return jnp.sum(jnp.where(weight > 0, scanned.out, 0.0))

    # Gradients have no promise of bits: another program may fuse otherwise.
    want = jax.jit(jax.grad(loss))(tuple(packed), state, length)
    inner = jax.checkpoint(jax.jit(loss))
    got = jax.jit(jax.grad(inner))(tuple(packed), state, length)
    for x, y in zip(got, want, strict=True):
      assert reference.relative_error(x, np.asarray(y)) <= 1e-5

  def test_no_more_than_chunk_states_are_kept(self):
    c, n = self.operation.chunk, 6
    _, packed, length = self.packed_inputs(n * c)
    state = jnp.asarray(self.operation.initial_state(0))

    def core(packed, state):
      return self.operation.core(*packed, length, initial_state=state)

    _, pull = jax.vjp(core, tuple(packed), state)
    kept = sum(x.size for x in jax.tree.leaves(pull))
    inputs = sum(x.size for x in packed)
    # Inputs, a state per chunk, and what is small: lengths and weights.
    assert kept <= inputs + n * state.size + 10 * state.size + 10 * n
