"""Mamba, RG-LRU, short convolutions: token by token in float64, and steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.layers import (
  MambaConfig,
  Numerics,
  RGLRUConfig,
  ShortConvConfig,
)
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.kernels.reference import relative_error
from tests.layers import reference
from tests.trees import assert_same_bits

C, D, N, SLOTS = 16, 48, 5, 6
JOBS = Job(40, writes={0: 1, 2: 2}), Job(20, writes={1: 3})
TABLE = jnp.zeros((N, 8), jnp.int32)
MAMBA = {"inner_width": 80, "state_width": 8, "rank": 3}
LAYERS = {
  "mamba": MambaConfig(**MAMBA),
  "biases": MambaConfig(**MAMBA, bias=True, conv_bias=False, window=3),
  "plain norms": MambaConfig(**MAMBA, part_norm="plain"),
  "weighted norms": MambaConfig(**MAMBA, part_norm="weighted", eps=1e-2),
  "rg_lru": RGLRUConfig(channels=80, heads=4),
  "short_conv": ShortConvConfig(channels=80, bias=True),
}
run = jax.jit(lambda layer, *inputs: layer(*inputs))
step = jax.jit(lambda layer, *inputs: layer.step(*inputs))


@functools.cache
def make_layer(name, dtype="float32"):
  """A layer whose biases, norms and decays all count."""
  numerics = Numerics(dtype=dtype, chunk=C, ladder=(4,))
  layer = LAYERS[name].make(D, numerics, rngs=nnx.Rngs(0))
  random = np.random.default_rng(1)

  def moved(x):
    if x.ndim > 1:
      return x
    return x + jnp.asarray(0.5 * random.normal(size=x.shape), x.dtype)

  nnx.update(layer, jax.tree.map(moved, nnx.state(layer)))
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
  """The layer in float64, one token after another: outputs, last state."""
  x, bias_of = reference.wide(x), reference.bias_of
  convolution = layer.config.kind == "short_conv"
  mixed, gate = (
    x @ reference.wide(weight[...]).T + bias_of(bias)
    for weight, bias in (
      (layer.in_mixed, layer.in_mixed_bias),
      (layer.in_leave, layer.in_leave_bias)
      if convolution
      else (layer.in_gate, layer.in_gate_bias),
    )
  )
  if convolution:
    enter = x @ reference.wide(layer.in_enter[...]).T
    mixed = mixed * (enter + bias_of(layer.in_enter_bias))
  taps, window = reference.wide(layer.conv[...]), layer.config.window
  state = mixed[1 - window :]
  padded = np.concatenate([np.zeros((window - 1, mixed.shape[1])), mixed])
  mixed = sum(padded[i : i + len(x)] * taps[i] for i in range(window))
  mixed = mixed + bias_of(layer.conv_bias)
  if layer.config.kind == "mamba":
    outs, state = expected_mamba(layer, reference.silu(mixed))
    opened = reference.silu(gate)
  elif convolution:
    outs, opened = mixed, gate
  else:
    outs, state = expected_rg_lru(layer, mixed)
    opened = reference.activation("gelu_tanh", gate)
  y = (outs * opened) @ reference.wide(layer.out[...]).T
  return y + bias_of(layer.out_bias), state


def expected_mamba(layer, u):
  """The recurrence of Mamba on convolved inputs."""
  c = layer.config
  ends = [c.rank, c.rank + c.state_width]
  parts = np.split(u @ reference.wide(layer.parts[...]).T, ends, -1)
  if c.part_norm != "none":
    parts = [reference.rms(part, c.eps) for part in parts]
  if c.part_norm == "weighted":
    weights = np.split(reference.wide(layer.part_norm[...]), ends)
    parts = [part * weight for part, weight in zip(parts, weights)]
  dt = parts[0] @ reference.wide(layer.in_step[...]).T
  dt = np.logaddexp(0, dt + reference.wide(layer.step_bias[...]))
  rate = -np.exp(reference.wide(layer.log_rate[...]))
  state, outs = np.zeros(rate.shape), []
  for t in range(len(u)):
    added = (dt[t] * u[t])[:, None] * parts[1][t]
    state = np.exp(dt[t][:, None] * rate) * state + added
    outs.append(state @ parts[2][t])
  return np.stack(outs) + u * reference.wide(layer.direct[...]), state


def expected_rg_lru(layer, u):
  """The recurrence of RG-LRU on convolved inputs, from the first token."""
  heads = layer.config.heads

  def gate(weight, bias):
    blocks = u.reshape(len(u), heads, -1)
    scores = np.einsum("thi,hio->tho", blocks, reference.wide(weight[...]))
    return reference.sigmoid(
      scores.reshape(u.shape) + reference.wide(bias[...])
    )

  opened = gate(layer.input_gate, layer.input_gate_bias)
  closing = gate(layer.recurrent_gate, layer.recurrent_gate_bias)
  decay = np.exp(
    -8 * closing * np.logaddexp(0, reference.wide(layer.rate[...]))
  )
  scale = np.sqrt(1 - decay**2)
  scale[0] = 1
  state, outs = np.zeros(u.shape[1]), []
  for t in range(len(u)):
    state = decay[t] * state + scale[t] * opened[t] * u[t]
    outs.append(state)
  return np.stack(outs), state


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    *((name, "float32") for name in LAYERS),
    ("mamba", "bfloat16"),
    ("rg_lru", "bfloat16"),
  ],
)
def test_equals_the_formula(name, dtype):
  layer, xs = make_layer(name, dtype), inputs(dtype)
  x = pack(JOBS, xs, N, C, padding=0)
  y, after = run(layer, x, free_pools(layer), chunks_of(JOBS, N, C), TABLE)
  tolerance = 1e-5 if dtype == "float32" else 3e-2
  ends = after.slots[0][jnp.array([2, 3])]
  for x, got, end in zip(xs, unpack(JOBS, y, C), ends, strict=True):
    expected, state = expected_layer(layer, x)
    assert got.dtype == x.dtype
    assert reference.distance(got, expected) <= tolerance
    assert reference.distance(end, state) <= tolerance


@pytest.mark.parametrize("name", ["weighted norms", "rg_lru", "short_conv"])
def test_packed_chunks_have_the_bits_of_another_order(name):
  layer, chunks = make_layer(name), chunks_of(JOBS, N, C)
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


@pytest.mark.parametrize("name", ["weighted norms", "rg_lru", "short_conv"])
def test_steps_are_close_to_the_chunk(name):
  layer, x = make_layer(name), inputs()[0]
  pools, outs = free_pools(layer), []
  for i in range(24):  # from the first token on
    rows = Rows(
      read=jnp.array([ZERO, 1 if i else ZERO]),
      write=jnp.array([NONE, 1]),
      position=jnp.array([5, i]),
      active=jnp.array([False, True]),
    )
    out, pools = step(layer, jnp.asarray(x[[0, i]]), pools, rows, TABLE[:2])
    outs.append(out[1])
  expected, state = expected_layer(layer, x[:24])
  assert relative_error(np.stack(outs), expected) <= 1e-4
  assert relative_error(pools.slots[0][1], state) <= 1e-4


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: MambaConfig(**MAMBA, window=1), "window is 1; .* at least 2"),
    (
      lambda: MambaConfig(**MAMBA, part_norm="l2"),
      "part_norm is 'l2'; .* plain",
    ),
    (lambda: MambaConfig(**(MAMBA | {"rank": 0})), "rank is 0; .* at least 1"),
    (lambda: RGLRUConfig(channels=9, heads=2), "channels is 9; .* heads = 2"),
  ],
)
def test_what_cannot_work_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
