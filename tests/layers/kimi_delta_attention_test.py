"""Kimi Delta Attention: token by token in float64, packed chunks, steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.layers import KimiDeltaAttentionConfig, Numerics
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.kernels.reference import relative_error
from tests.layers import reference

C, D, N, SLOTS = 16, 48, 4, 4
JOBS = Job(40, writes={2: 2}), Job(10, writes={0: 3})
TABLE = jnp.zeros((N, 8), jnp.int32)
run = jax.jit(lambda layer, *inputs: layer(*inputs))
step = jax.jit(lambda layer, *inputs: layer.step(*inputs))


@functools.cache
def make_layer(dtype):
  config = KimiDeltaAttentionConfig(heads=3, head_width=16, window=3)
  numerics = Numerics(dtype=dtype, chunk=C, ladder=(4,))
  layer = config.make(D, numerics, rngs=nnx.Rngs(0))
  layer.norm[...] = jnp.linspace(0.5, 2.0, 16).astype(dtype)
  # Channels that forget in a token, and some that keep what they have.
  layer.decay_bias[...] = jnp.linspace(-6.0, 3.0, 48)
  return layer


def free_pools(layer):
  pools = layer.config.keeps(D, layer.numerics).zeros(slots=SLOTS, pages=0)
  return jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), pools)


def inputs(dtype):
  random = np.random.default_rng(0)
  return [
    np.asarray(jnp.asarray(random.normal(size=(job.length, D)), dtype))
    for job in JOBS
  ]


def convolved(layer, x):
  """silu(conv(W x)) of all tokens, in float64."""
  window = layer.config.window
  mixed = x @ reference.wide(layer.in_qkv[...]).T
  mixed = np.concatenate([np.zeros((window - 1, mixed.shape[1])), mixed])
  taps = reference.wide(layer.conv[...])
  shifted = [mixed[i : i + len(x)] * taps[i] for i in range(window)]
  return reference.silu(np.sum(shifted, axis=0))


def expected_layer(layer, x):
  """The layer in float64: outputs, and the last state."""
  c, x = layer.config, reference.wide(x)
  shape = len(x), c.heads, c.head_width
  q, k, v = (u.reshape(shape) for u in np.split(convolved(layer, x), 3, 1))
  q, k = (u / np.sqrt((u**2).sum(-1, keepdims=True) + 1e-6) for u in (q, k))
  narrow = x @ reference.wide(layer.in_narrow[...]).T
  low, gate, beta = np.split(narrow, [c.head_width, 2 * c.head_width], 1)
  low = low @ reference.wide(layer.in_decay[...]).T
  rate = np.exp(reference.wide(layer.log_rate[...]))[:, None]
  bias = reference.wide(layer.decay_bias[...])
  decay = np.exp(-rate * np.logaddexp(0, low + bias).reshape(shape))
  state, outs = np.zeros((c.heads, c.head_width, c.head_width)), []
  for t in range(len(x)):
    state = decay[t][:, :, None] * state
    update = v[t] - np.einsum("hkv,hk->hv", state, k[t])
    update *= reference.sigmoid(beta[t])[:, None]
    state += k[t][:, :, None] * update[:, None]
    outs.append(np.einsum("hkv,hk->hv", state, q[t]) * c.head_width**-0.5)
  normed = reference.rms(np.stack(outs), c.eps)
  normed *= reference.wide(layer.norm[...])
  gate = gate @ reference.wide(layer.in_gate[...]).T
  opened = normed.reshape(gate.shape) * reference.sigmoid(gate)
  return opened @ reference.wide(layer.out[...]).T, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_formula(dtype):
  layer, xs = make_layer(dtype), inputs(dtype)
  x = pack(JOBS, xs, N, C, padding=0)
  y, after = run(layer, x, free_pools(layer), chunks_of(JOBS, N, C), TABLE)
  tolerance = 1e-5 if dtype == "float32" else 3e-2
  for slot, x, got in zip((2, 3), xs, unpack(JOBS, y, C), strict=True):
    expected, state = expected_layer(layer, x)
    end = after.slots.recurrent_state[slot]
    assert reference.distance(got, expected) <= tolerance
    assert reference.distance(end, state) <= tolerance


def test_steps_are_close_to_the_chunk():
  layer, (x, _) = make_layer("float32"), inputs("float32")
  pools, outs = free_pools(layer), []
  for i in range(20):
    rows = Rows(
      read=jnp.array([ZERO, 1 if i else ZERO]),
      write=jnp.array([NONE, 1]),
      position=jnp.array([0, i]),
      active=jnp.array([False, True]),
    )
    out, pools = step(layer, jnp.asarray(x[[0, i]]), pools, rows, TABLE[:2])
    outs.append(out[1])
  expected, state = expected_layer(layer, x[:20])
  assert relative_error(np.stack(outs), expected) <= 1e-4
  assert relative_error(pools.slots.recurrent_state[1], state) <= 1e-4


def test_what_cannot_work_is_refused():
  with pytest.raises(ValueError, match=r"window is 1; .* at least 2"):
    KimiDeltaAttentionConfig(heads=1, head_width=8, window=1)
