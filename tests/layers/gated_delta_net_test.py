"""Gated DeltaNet: the formula, chunks packed or one by one, steps."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Rows
from sparse_prefix_jax.layers import (
  BranchPools,
  GatedDeltaNetConfig,
  GatedDeltaNetState,
  Numerics,
)
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.kernels.reference import convolution, delta_rule, relative_error
from tests.layers import reference
from tests.layers.reference import distance
from tests.trees import assert_same_bits

C, D, SLOTS, N = 64, 64, 12, 5
CONFIG = GatedDeltaNetConfig(
  key_heads=2, value_heads=4, key_width=32, value_width=32
)
TABLE = np.zeros((2, 8), np.int32)
LENGTHS = (150, 70)
JOBS = (
  Job(150, writes={0: 0, 1: 1, 2: 2}),
  Job(70, read=9, writes={0: 9, 1: 4}),
)

run = jax.jit(lambda layer, *inputs: layer(*inputs))
step = jax.jit(lambda layer, *inputs: layer.step(*inputs))


@functools.cache
def make_layer(dtype="float32", config=CONFIG):
  return config.make(D, Numerics(dtype=dtype), rngs=nnx.Rngs(0))


@functools.cache
def inputs(dtype="float32"):
  keys = jax.random.split(jax.random.key(0), len(LENGTHS))
  return [
    np.asarray(jax.random.normal(key, (t, D)).astype(dtype))
    for key, t in zip(keys, LENGTHS, strict=True)
  ]


def pools_of(layer):
  """Free slots hold NaN; slot 9 what a request left there."""
  pools = CONFIG.keeps(D, layer.numerics).zeros(slots=SLOTS, pages=0)
  keys = jax.random.split(jax.random.key(1), 2)
  state = GatedDeltaNetState(
    *(
      jnp.full_like(pool, jnp.nan)
      .at[9]
      .set(jax.random.normal(key, pool.shape[1:]).astype(pool.dtype))
      for key, pool in zip(keys, pools.slots, strict=True)
    )
  )
  return BranchPools(slots=state)


def expected_layer(layer, x, pools, slot):
  """The layer token by token in float64: outputs and states."""
  c, w = layer.config, lambda p: reference.wide(p[...])
  x = reference.wide(x)
  mixed = x @ w(layer.in_qkv).T
  past = np.zeros((c.window - 1, c.mixed_width))
  state = np.zeros((c.value_heads, c.key_width, c.value_width))
  if slot != ZERO:
    past = pools.slots.conv_state[slot]
    state = pools.slots.recurrent_state[slot]
  mixed = reference.silu(convolution(mixed, w(layer.conv), past))
  keys = c.key_heads * c.key_width
  q, k, v = np.split(mixed, [keys, 2 * keys], axis=-1)
  q, k = (u.reshape(-1, c.key_heads, c.key_width) for u in (q, k))
  q, k = (u / np.sqrt((u**2).sum(-1, keepdims=True) + 1e-6) for u in (q, k))
  decay, beta = np.split(x @ w(layer.in_decay_beta).T, 2, axis=-1)
  log_decay = -np.exp(w(layer.log_rate)) * np.logaddexp(
    0, decay + w(layer.decay_bias)
  )
  v = v.reshape(-1, c.value_heads, c.value_width)
  out, states = delta_rule(
    q * c.key_width**-0.5,
    k,
    v,
    log_decay,
    c.beta_scale * reference.sigmoid(beta),
    state,
  )
  normed = reference.rms(out, c.eps) * w(layer.norm)
  gate = reference.silu(x @ w(layer.in_gate).T).reshape(normed.shape)
  y = (normed * gate).reshape(x.shape[0], -1) @ w(layer.out).T
  return y, states


@pytest.mark.parametrize(
  ("dtype", "beta_scale"),
  [("float32", 1.0), ("float32", 2.0), ("bfloat16", 1.0)],
)
def test_equals_the_formula(dtype, beta_scale):
  config = dataclasses.replace(CONFIG, beta_scale=beta_scale)
  layer, xs = make_layer(dtype, config), inputs(dtype)
  pools = pools_of(layer)
  x = pack(JOBS, xs, N, C, padding=0)
  y, after = run(layer, x, pools, chunks_of(JOBS, N, C), TABLE)
  chex.assert_type([y, after.slots.recurrent_state], [dtype, jnp.float32])
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  for job, x, got in zip(JOBS, xs, unpack(JOBS, y, C), strict=True):
    expected, states = expected_layer(layer, x, pools, job.read)
    assert distance(got, expected) <= tolerance
    for chunk, slot in job.writes.items():
      end = min((chunk + 1) * C, job.length)
      state = after.slots.recurrent_state[slot]
      assert distance(state, states[end]) <= tolerance


def test_packed_chunks_have_the_bits_of_one_at_a_time():
  layer = make_layer()
  pools = pools_of(layer)
  chunks = chunks_of(JOBS, N, C)
  x = pack(JOBS, inputs(), N, C, padding=0)
  y, after = run(layer, x, pools, chunks, TABLE)
  # The carry between chunks goes through slot 11, captures are kept apart.
  singles, running = [], pools
  for i in range(N):
    one = jax.tree.map(lambda field, i=i: field[i : i + 1], chunks)
    if one.read[0] == CARRY:
      one = one._replace(read=jnp.array([11]))
    wanted, one = one.write[0], one._replace(write=jnp.array([11]))
    out, running = run(layer, x[i : i + 1], running, one, TABLE)
    singles.append(out)
    if wanted != NONE:
      running = jax.tree.map(
        lambda p, slot=wanted: p.at[slot].set(p[11]), running
      )
  singles = jnp.concatenate(singles)
  assert_same_bits(unpack(JOBS, singles, C), unpack(JOBS, y, C))
  kept = jax.tree.map(lambda pool: pool.at[11].set(jnp.nan), running)
  assert_same_bits(kept, after)


def test_steps_are_close_to_the_chunk():
  layer = make_layer()
  pools, (x, _) = pools_of(layer), inputs()
  job = Job(20, read=9, writes={0: 3})
  packed = pack([job], [x[:20]], N, C, padding=0)
  y, after = run(layer, packed, pools, chunks_of([job], N, C), TABLE)
  (expected,) = unpack([job], y, C)
  outs, read, stepped = [], 9, pools
  for i in range(20):
    rows = Rows(
      read=jnp.array([ZERO, read]),
      write=jnp.array([NONE, 5]),
      position=jnp.full(2, i),
      active=jnp.array([False, True]),
    )
    out, stepped = step(layer, jnp.asarray(x[[0, i]]), stepped, rows, TABLE)
    outs.append(out[1])
    read = 5
  assert relative_error(np.stack(outs), reference.wide(expected)) <= 1e-4
  for pool, chunked in zip(stepped.slots, after.slots, strict=True):
    assert relative_error(pool[5], reference.wide(chunked[3])) <= 1e-4
  unwritten = np.delete(np.arange(SLOTS), 5)
  others = [
    [pool[unwritten] for pool in kept.slots] for kept in (stepped, pools)
  ]
  assert_same_bits(*others)
