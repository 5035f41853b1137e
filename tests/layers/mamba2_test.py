"""Mamba-2: the recurrence token by token in float64, packed chunks, steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.layers import Mamba2Config, Numerics
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.kernels.reference import relative_error
from tests.layers import reference
from tests.trees import assert_same_bits

C, D, N, SLOTS = 16, 64, 5, 6
JOBS = Job(40, writes={0: 1, 2: 2}), Job(20, writes={1: 3})
TABLE = jnp.zeros((N, 8), jnp.int32)
SHAPES = {
  "one group": {"groups": 1},
  "two groups": {"groups": 2, "bias": True},
  "no conv bias": {"groups": 4, "conv_bias": False, "window": 3},
  "least step": {"groups": 2, "least_step": 0.6},
  "norm first": {"groups": 2, "norm": "before_gate", "bias": True}
  | {"part_scales": (0.5, 2.0, 0.25, 1.5, 0.75)},
  "no norm": {"groups": 1, "norm": "none"},
}
run = jax.jit(lambda layer, *inputs: layer(*inputs))
step = jax.jit(lambda layer, *inputs: layer.step(*inputs))


@functools.cache
def make_layer(shape="two groups", dtype="float32"):
  """A layer whose biases, norm and decays all count."""
  choices = {"heads": 4, "head_width": 32, "state_width": 16} | SHAPES[shape]
  numerics = Numerics(dtype=dtype, chunk=C, ladder=(4,))
  layer = Mamba2Config(**choices).make(D, numerics, rngs=nnx.Rngs(0))
  random = np.random.default_rng(1)

  def moved(x):
    if x.ndim > 1:
      return x
    return x + jnp.asarray(0.5 * random.normal(size=x.shape), x.dtype)

  nnx.update(layer, jax.tree.map(moved, nnx.state(layer)))
  layer.step_bias[...] = layer.step_bias[...] + 4
  return layer


@functools.cache
def inputs(dtype="float32"):
  random = np.random.default_rng(0)
  return [
    np.asarray(jnp.asarray(random.normal(size=(job.length, D)), dtype))
    for job in JOBS
  ]


def free_pools(layer):
  pools = layer.config.keeps(D, layer.numerics).zeros(slots=SLOTS, pages=0)
  return jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), pools)


def expected_layer(layer, x):
  """The layer in float64, one token after another. [t d], [hv k v]"""
  c, x = layer.config, reference.wide(x)
  gate, mixed, dt = (
    x @ reference.wide(weight[...]).T + reference.bias_of(bias)
    for weight, bias in (
      (layer.in_gate, layer.in_gate_bias),
      (layer.in_mixed, layer.in_mixed_bias),
      (layer.in_step, layer.in_step_bias),
    )
  )
  keys = c.groups * c.state_width
  if c.part_scales:
    z, *parts, step = c.part_scales
    gate, dt = gate * z, dt * step
    mixed = mixed * np.repeat(parts, (c.inner_width, keys, keys))
  taps = reference.wide(layer.conv[...])
  padded = np.concatenate([np.zeros((c.window - 1, mixed.shape[1])), mixed])
  mixed = sum(padded[i : i + len(x)] * taps[i] for i in range(c.window))
  mixed = reference.silu(mixed + reference.bias_of(layer.conv_bias))
  v, k, q = np.split(mixed, [c.inner_width, c.inner_width + keys], -1)
  v = v.reshape(len(x), c.heads, -1)
  k, q = (
    np.repeat(u.reshape(len(x), c.groups, -1), c.heads // c.groups, 1)
    for u in (k, q)
  )
  dt = np.log1p(np.exp(dt + reference.wide(layer.step_bias[...])))
  dt = np.maximum(dt, c.least_step or 0)
  rate = -np.exp(reference.wide(layer.log_rate[...]))
  state = np.zeros((c.heads, c.state_width, c.head_width))
  outs = []
  for t in range(len(x)):
    added = k[t][:, :, None] * (dt[t][:, None] * v[t])[:, None]
    state = np.exp(rate * dt[t])[:, None, None] * state + added
    skipped = reference.wide(layer.direct[...])[:, None] * v[t]
    outs.append(np.einsum("hkv,hk->hv", state, q[t]) + skipped)
  out = np.stack(outs).reshape(len(x), -1)
  if c.norm != "before_gate":
    out = out * reference.silu(gate)
  if c.norm != "none":
    out = reference.rms(out.reshape(len(x), c.groups, -1), c.eps)
    out = out.reshape(len(x), -1) * reference.wide(layer.norm[...])
  if c.norm == "before_gate":
    out = out * reference.silu(gate)
  return out @ reference.wide(layer.out[...]).T + reference.bias_of(
    layer.out_bias
  ), state


@pytest.mark.parametrize(
  ("shape", "dtype"),
  [*((shape, "float32") for shape in SHAPES), ("two groups", "bfloat16")],
)
def test_equals_the_formula(shape, dtype):
  layer, xs = make_layer(shape, dtype), inputs(dtype)
  x = pack(JOBS, xs, N, C, padding=0)
  y, after = run(layer, x, free_pools(layer), chunks_of(JOBS, N, C), TABLE)
  tolerance = 1e-5 if dtype == "float32" else 3e-2
  ends = after.slots.recurrent_state[jnp.array([2, 3])]
  for x, got, end in zip(xs, unpack(JOBS, y, C), ends, strict=True):
    expected, state = expected_layer(layer, x)
    assert got.dtype == x.dtype
    assert reference.distance(got, expected) <= tolerance
    assert reference.distance(end, state) <= tolerance


def test_packed_chunks_have_the_bits_of_one_at_a_time():
  layer, chunks = make_layer(), chunks_of(JOBS, N, C)
  x = pack(JOBS, inputs(), N, C, padding=0)
  y, after = run(layer, x, free_pools(layer), chunks, TABLE)
  other = [Job(20, writes={1: 4}), Job(40, writes={0: 1, 2: 5})]
  x = pack(other, inputs()[::-1], N, C, padding=0)
  z, again = run(layer, x, free_pools(layer), chunks_of(other, N, C), TABLE)
  assert_same_bits(unpack(JOBS, y, C), unpack(other, z, C)[::-1])
  for one, two in ((2, 5), (3, 4), (1, 1)):
    assert_same_bits(
      jax.tree.map(lambda pool, i=one: pool[i], after),
      jax.tree.map(lambda pool, i=two: pool[i], again),
    )


def test_steps_are_close_to_the_chunk():
  layer, x = make_layer(), inputs()[0]
  jobs = [Job(32, writes={1: 1})]
  packed = pack(jobs, [x[:32]], N, C, padding=0)
  _, pools = run(layer, packed, free_pools(layer), chunks_of(jobs, N, C), TABLE)
  outs = []
  for i in range(32, 40):
    rows = Rows(
      read=jnp.array([ZERO, 1]),
      write=jnp.array([NONE, 1]),
      position=jnp.array([0, i]),
      active=jnp.array([False, True]),
    )
    out, pools = step(layer, jnp.asarray(x[[0, i]]), pools, rows, TABLE[:2])
    outs.append(out[1])
  expected, state = expected_layer(layer, x)
  assert relative_error(np.stack(outs), expected[32:]) <= 1e-4
  assert relative_error(pools.slots.recurrent_state[1], state) <= 1e-4


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"heads": 3}, "heads is 3; it must be a multiple of groups = 2"),
    ({"state_width": 0}, "state_width is 0; it must be at least 1"),
    ({"window": 1}, "window is 1; it must be at least 2"),
    ({"norm": "both"}, "norm is 'both'; it must be one of behind_gate"),
    ({"least_step": 0.0}, "least_step is 0.0; .* above 0 or None"),
    ({"part_scales": (1.0,)}, "part_scales is .1.0,.; .* tuple of 5"),
  ],
)
def test_what_cannot_work_is_refused(changes, message):
  choices = {"heads": 4, "groups": 2, "head_width": 8, "state_width": 8}
  with pytest.raises(ValueError, match=message):
    Mamba2Config(**(choices | changes))
