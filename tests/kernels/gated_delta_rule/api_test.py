"""gated_delta_rule: right, of one set of bits, differentiable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_chunk,
  gated_delta_rule,
  gated_delta_rule_step,
)
from sparse_prefix_jax.layers import scan_with_capture
from tests.kernels import reference
from tests.kernels.packing import (
  Job,
  bits,
  chunks_of,
  pack,
  poisoned_pool,
  unpack,
)

C, H, HV, K, V = 64, 2, 4, 16, 24
SLOTS, N = 300, 8
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
DECAYS = (0.0, -1e-4, -20.0, -1000.0, -np.inf)

run = jax.jit(gated_delta_rule)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tokens(seed, t, *, keys="random", decay="gates", beta="gates", dtype=None):
  """Inputs of one request as (q, k, v, log_decay, beta), each [t ...]."""
  random = np.random.default_rng(seed)

  def normal(*shape):
    return random.standard_normal(shape, np.float32)

  k = normal(t, H, K)
  if keys == "repeated":
    k = np.broadcast_to(k[:1], k.shape)
  if keys == "correlated":
    k = 0.1 * k + normal(1, H, K)
  # exp(A) has the rounding of A: beta 0 leaves nothing else, so A stays modest.
  decays = -0.3 * np.logaddexp(0, 2 * normal(t, HV))
  if decay == "mixed":
    decays = random.choice([*DECAYS, -0.1, -3.0], (t, HV))
  elif decay != "gates":
    decays = np.full((t, HV), decay)
  betas = 1 / (1 + np.exp(-2 * normal(t, HV)))
  if beta != "gates":
    betas = np.full((t, HV), beta)
  q, k, v = (
    jnp.asarray(x, jnp.dtype(dtype or "float32"))
    for x in (unit(normal(t, H, K)) * K**-0.5, unit(k), normal(t, HV, V))
  )
  return *map(np.asarray, (q, k, v)), *(
    x.astype(np.float32) for x in (decays, betas)
  )


def call(jobs, inputs, pool, n=N):
  """Runs jobs packed together: outputs per job, and the pool."""
  packed = [pack(jobs, arrays, n, C) for arrays in zip(*inputs, strict=True)]
  out, pool = run(*packed, jnp.asarray(pool), chunks_of(jobs, n, C))
  assert np.isfinite(out).all()
  return unpack(jobs, out, C), np.asarray(pool)


def initial_state(seed=0):
  random = np.random.default_rng(seed)
  return random.standard_normal((HV, K, V), np.float32)


# Ends inside a chunk; resumes and ends on the lattice; ends one token later.
JOBS = (
  Job(150, writes={0: 299, 1: 7, 2: 130}),
  Job(64, read=11, writes={0: 12}),
  Job(129, read=200, writes={2: 200}),
)


def check_against_reference(dtype="float32", **choices):
  pool = poisoned_pool((SLOTS, HV, K, V))
  pool[11], pool[200] = initial_state(1), initial_state(2)
  inputs = [
    tokens(seed, job.length, dtype=dtype, **choices)
    for seed, job in enumerate(JOBS)
  ]
  outs, after = call(JOBS, inputs, pool)
  for job, arrays, out in zip(JOBS, inputs, outs, strict=True):
    before = np.zeros((HV, K, V)) if job.read == ZERO else pool[job.read]
    expected, states = reference.delta_rule(*arrays, before)
    assert reference.relative_error(out, expected) <= TOLERANCE[dtype]
    for chunk, slot in job.writes.items():
      end = min((chunk + 1) * C, job.length)
      error = reference.relative_error(after[slot], states[end])
      assert error <= TOLERANCE[dtype]


@pytest.mark.parametrize("beta", [0.0, 1.0, "gates"])
@pytest.mark.parametrize("decay", [*DECAYS, "mixed", "gates"])
@pytest.mark.parametrize("keys", ["random", "repeated", "correlated"])
def test_equals_the_recurrence(keys, decay, beta):
  check_against_reference(keys=keys, decay=decay, beta=beta)


@pytest.mark.parametrize("decay", [0.0, -20.0, "mixed", "gates"])
@pytest.mark.parametrize("keys", ["random", "repeated", "correlated"])
def test_equals_the_recurrence_with_bfloat16_inputs(keys, decay):
  check_against_reference("bfloat16", keys=keys, decay=decay, beta="gates")


def test_equals_the_recurrence_with_one_head_per_key():
  t = 100
  q, k, v, log_decay, beta = tokens(0, t)
  inputs = q, k, v[:, :H], log_decay[:, :H], beta[:, :H]
  job = Job(t, writes={1: 0})
  packed = [pack([job], [x], 2, C) for x in inputs]
  pool = jnp.full((1, H, K, V), jnp.nan)
  out, pool = run(*packed, pool, chunks_of([job], 2, C))
  expected, states = reference.delta_rule(*inputs, np.zeros((H, K, V)))
  (out,) = unpack([job], out, C)
  assert reference.relative_error(out, expected) <= 1e-5
  assert reference.relative_error(pool[0], states[-1]) <= 1e-5


def test_slots_not_written_keep_their_bits():
  pool = poisoned_pool((SLOTS, HV, K, V))
  pool[11], pool[200] = initial_state(1), initial_state(2)
  inputs = [tokens(seed, job.length) for seed, job in enumerate(JOBS)]
  _, after = call(JOBS, inputs, pool)
  written = sorted(s for job in JOBS for s in job.writes.values())
  changed = [s for s in range(SLOTS) if bits(after[s]) != bits(pool[s])]
  assert changed == written


def test_reset_forgets_the_state_and_nothing_else():
  inputs = tokens(0, 100, decay=0.0)
  inputs[3][40] = -np.inf
  pool = poisoned_pool((SLOTS, HV, K, V))
  pool[:2] = initial_state(), 1e3 * initial_state(1)
  outs = [call([Job(100, read=slot)], [inputs], pool)[0][0] for slot in (0, 1)]
  assert np.abs(outs[0][:40] - outs[1][:40]).max() > 1
  np.testing.assert_array_equal(outs[0][40:], outs[1][40:])


@functools.cache
def cold():
  """One request alone: its inputs, its outputs, its state per chunk."""
  inputs = tokens(5, 310, keys="correlated")
  job = Job(310, writes={i: i for i in range(5)})
  (out,), pool = call([job], [inputs], poisoned_pool((SLOTS, HV, K, V)))
  return inputs, out, pool[:5]


@pytest.mark.parametrize("captures", [{}, {1: 44}, {0: 299, 3: 0, 4: 7}])
def test_capture_changes_no_bit(captures):
  inputs, expected, states = cold()
  pool = poisoned_pool((SLOTS, HV, K, V))
  (out,), pool = call([Job(310, writes=captures)], [inputs], pool)
  assert bits(out) == bits(expected)
  for chunk, slot in captures.items():
    assert bits(pool[slot]) == bits(states[chunk])


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_resumed_has_the_bits_of_cold(done):
  inputs, expected, states = cold()
  pool = poisoned_pool((SLOTS, HV, K, V))
  pool[9] = states[done - 1]
  job = Job(310 - done * C, read=9, writes={4 - done: 9})  # its own slot
  rest = [x[done * C :] for x in inputs]
  (out,), pool = call([job], [rest], pool)
  assert bits(out) == bits(expected[done * C :])
  assert bits(pool[9]) == bits(states[4])


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("n", [N, 11])
def test_any_packing_has_the_bits_of_alone(place, n):
  inputs, expected, states = cold()
  jobs = [Job(70, writes={0: 8}), Job(5, read=20, writes={0: 21})]
  others = [tokens(6, 70, decay=0.0), tokens(7, 5)]
  jobs.insert(place, Job(310, writes={4: 299}))
  others.insert(place, inputs)
  pool = poisoned_pool((SLOTS, HV, K, V))
  pool[20] = initial_state()
  outs, pool = call(jobs, others, pool, n=n)
  assert bits(outs[place]) == bits(expected)
  assert bits(pool[299]) == bits(states[4])


def test_steps_equal_the_recurrence():
  t, b = 30, 3
  inputs = [tokens(seed, t, decay="mixed") for seed in range(b)]
  stacked = [np.stack(x) for x in zip(*inputs, strict=True)]
  pool = poisoned_pool((SLOTS, HV, K, V))
  pool[4], pool[5] = initial_state(1), initial_state(2)
  step, outs = jax.jit(gated_delta_rule_step), []
  read, write = jnp.array([ZERO, 4, 5]), jnp.array([299, 7, 5])
  after = jnp.asarray(pool)
  for i in range(t):
    out, after = step(*(x[:, i] for x in stacked), after, read, write)
    outs.append(out)
    read = write
  for row, before in enumerate([np.zeros((HV, K, V)), pool[4], pool[5]]):
    expected, states = reference.delta_rule(*inputs[row], before)
    error = reference.relative_error(np.stack(outs)[:, row], expected)
    assert error <= 1e-5
    error = reference.relative_error(after[write[row]], states[-1])
    assert error <= 1e-5
  changed = [s for s in range(SLOTS) if bits(after[s]) != bits(pool[s])]
  assert changed == [5, 7, 299]


def test_a_step_has_the_same_bits_in_any_row():
  inputs = [np.asarray(x[:4]) for x in tokens(0, 4)]
  pool = poisoned_pool((SLOTS, HV, K, V))
  pool[:4] = [initial_state(i) for i in range(4)]
  step = jax.jit(gated_delta_rule_step)
  read = np.arange(4)
  out, after = step(*inputs, pool, read, read + 10)
  order = np.array([2, 0, 3, 1])
  write = np.array([20, 21, NONE, 23])
  again, later = step(*(x[order] for x in inputs), pool, read[order], write)
  assert bits(again) == bits(np.asarray(out)[order])
  for slot, row in ((20, 2), (21, 0), (23, 1)):
    assert bits(later[slot]) == bits(after[row + 10])
  assert bits(later[-1]) == bits(pool[-1])


def chunk_cell(state, x):
  *inputs, length = x
  return gated_delta_chunk(state, tuple(inputs), length)


def test_both_drivers_give_the_same_bits():
  inputs, expected, states = cold()
  job = Job(310)
  xs = tuple(pack([job], [x], N, C) for x in inputs)
  xs += (chunks_of([job], N, C).length,)
  xs = jax.tree.map(lambda x: x[:5], xs)
  scan = jax.jit(functools.partial(scan_with_capture, chunk_cell))
  out = scan(jnp.zeros((HV, K, V)), xs, np.array([1, 2, 4]))
  assert bits(unpack([job], out.ys, C)[0]) == bits(expected)
  assert bits(out.captured) == bits(states[[0, 1, 3]])
  assert bits(out.carry) == bits(states[4])


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1))
def gradients(inputs, state, length, weight, kept):
  """Through outputs, the state captured after one chunk, and the last one."""
  out = scan_with_capture(chunk_cell, state, (*inputs, length), (1,))
  loss = jnp.sum(out.ys * weight) + jnp.sum(out.captured[0] * kept[0])
  return loss + jnp.sum(out.carry * kept[1])


@pytest.mark.parametrize("keys", ["random", "repeated"])
def test_gradients_equal_those_of_the_recurrence(keys):
  t, n = 100, 2
  q, k, v, log_decay, beta = tokens(3, t, keys=keys, decay="mixed")
  inputs = q, k, v[:, :H], log_decay[:, :H], beta[:, :H]
  state = initial_state()[:H]
  random = np.random.default_rng(1)
  d_out = random.standard_normal((t, H, V))
  d_states = np.zeros((t + 1, H, K, V))
  d_states[C], d_states[t] = random.standard_normal((2, H, K, V))
  job = Job(t)
  # Rows past the length do not reach the loss: their weight is zero.
  weight = pack([job], [d_out.astype(np.float32)], n, C, padding=0)
  length = chunks_of([job], n, C).length
  packed = tuple(pack([job], [x], n, C, padding=0) for x in inputs)
  kept = d_states[[C, t]].astype(np.float32)
  got, got_state = gradients(packed, state, length, weight, kept)
  *expected, expected_state = reference.delta_rule_gradients(
    *inputs, state, d_out, d_states
  )
  for gradient, want in zip(got, expected, strict=True):
    assert np.isfinite(gradient).all()
    (real,) = unpack([job], gradient, C)
    assert reference.relative_error(real, want) <= 1e-4
  assert reference.relative_error(got_state, expected_state) <= 1e-4


def test_reference_gradients_are_those_of_the_reference():
  """A directional derivative by central differences, in float64."""
  random = np.random.default_rng(0)
  inputs = [x[:5] for x in reference.wide(*tokens(0, 5))]
  inputs = [*inputs[:2], *(x[:, :H] for x in inputs[2:])]
  inputs.append(random.standard_normal((H, K, V)))
  d_out = random.standard_normal((5, H, V))
  d_states = random.standard_normal((6, H, K, V))

  def loss(inputs):
    out, states = reference.delta_rule(*inputs)
    return (out * d_out).sum() + (states * d_states).sum()

  gradients = reference.delta_rule_gradients(*inputs, d_out, d_states)
  for i, gradient in enumerate(gradients):
    ahead, behind = list(inputs), list(inputs)
    step = 1e-5 * random.standard_normal(inputs[i].shape)
    ahead[i], behind[i] = inputs[i] + step, inputs[i] - step
    difference = (loss(ahead) - loss(behind)) / 2
    assert (gradient * step).sum() == pytest.approx(difference, rel=1e-6)


def test_unknown_implementation_is_refused():
  inputs = tokens(0, 1)
  packed = [pack([Job(1)], [x], 1, C) for x in inputs]
  with pytest.raises(ValueError, match="implementation='nonsense'") as refused:
    gated_delta_rule(
      *packed,
      jnp.zeros((1, HV, K, V)),
      chunks_of([Job(1)], 1, C),
      implementation="nonsense",
    )
  assert "gated_delta_rule" in str(refused.value)
  assert "xla" in str(refused.value)
  assert str(refused.value).count(".") == 1
