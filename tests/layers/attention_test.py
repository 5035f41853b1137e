"""Gated attention: the formula, chunks packed or one by one, steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.layers import AttentionConfig, Numerics
from tests.kernels.devices import HOPPER, TPUS, lowered, traced_for
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.kernels.reference import causal_attention, relative_error
from tests.layers import reference
from tests.layers.reference import distance
from tests.trees import assert_same_bits

C, D, PAGES, N = 64, 64, 12, 5
CONFIG = AttentionConfig(heads=4, kv_heads=2, head_width=32, rotary_width=16)
PLAIN = AttentionConfig(
  heads=4,
  kv_heads=2,
  head_width=32,
  rotary_width=None,
  gate=False,
  head_norm=False,
  scale=0.25,
)
WINDOW = dataclasses.replace(
  PLAIN, attention_window=40, key_scale=0.5, bias=True, out_bias=True
)
ROWS = dataclasses.replace(PLAIN, row_norm=True, centred=False, rotary_width=8)
JOBS = Job(150), Job(70)
TABLE = np.zeros((N, 8), np.int32)
TABLE[0, :3], TABLE[1, :2] = (7, 2, 11), (5, 3)

run = jax.jit(lambda layer, *inputs: layer(*inputs))
step = jax.jit(lambda layer, *inputs: layer.step(*inputs))


@functools.cache
def make_layer(dtype="float32", config=CONFIG):
  """Weights large enough for a softmax that is not flat."""
  layer = config.make(D, Numerics(dtype=dtype), rngs=nnx.Rngs(0))
  for bias, value in (
    (layer.query_gate_bias, 0.5),
    (layer.key_bias, -1),
    (layer.value_bias, 2),
    (layer.out_bias, 0.25),
  ):
    if bias is not None:
      bias[...] = jnp.linspace(0, value, bias.size).astype(dtype)
  if not config.head_norm and not config.row_norm:
    return layer
  layer.query_norm[...] = layer.query_norm[...] + jnp.asarray(2, dtype)
  layer.key_norm[...] = layer.key_norm[...] - jnp.asarray(0.25, dtype)
  return layer


@functools.cache
def inputs(dtype="float32"):
  keys = jax.random.split(jax.random.key(0), len(JOBS))
  return [
    np.asarray(jax.random.normal(key, (job.length, D)).astype(dtype))
    for key, job in zip(keys, JOBS, strict=True)
  ]


def free_pools(layer):
  pools = CONFIG.keeps(D, layer.numerics).zeros(slots=0, pages=PAGES)
  return jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), pools)


def expected_layer(layer, x):
  """The layer in float64, softmax over all tokens before."""
  c, x = layer.config, reference.wide(x)
  position = np.arange(x.shape[0])

  def heads(weight, bias, count):
    y = x @ reference.wide(weight[...]).T + reference.bias_of(bias)
    return y.reshape(x.shape[0], count, -1)

  q = heads(layer.in_query_gate, layer.query_gate_bias, c.heads)
  k = heads(layer.in_key, layer.key_bias, c.kv_heads) * c.key_scale
  v = heads(layer.in_value, layer.value_bias, c.kv_heads)
  opened = 1.0
  if c.gate:
    q, gate = np.split(q, 2, axis=-1)
    opened = reference.sigmoid(gate)
  if c.head_norm or c.row_norm:
    q, k = (
      normed(c, u, norm)
      for u, norm in ((q, layer.query_norm), (k, layer.key_norm))
    )
  if c.rotary_width:
    q, k = (
      reference.rotate(u, position, c.rotary_width, c.rope_theta)
      for u in (q, k)
    )
  scale = c.scale or c.head_width**-0.5
  out = opened * causal_attention(q * scale, k, v, window=c.attention_window)
  out = out.reshape(x.shape[0], -1) @ reference.wide(layer.out[...]).T
  return out + reference.bias_of(layer.out_bias)


def normed(config, x, norm):
  """Queries or keys under a norm, of each head or of a row."""
  rows = x.reshape(len(x), -1) if config.row_norm else x
  weight = reference.wide(norm[...]) + (1 if config.centred else 0)
  return (reference.rms(rows, config.eps) * weight).reshape(x.shape)


@pytest.mark.parametrize(
  ("dtype", "config"),
  [
    ("float32", CONFIG),
    ("bfloat16", CONFIG),
    ("float32", PLAIN),
    ("float32", WINDOW),
    ("float32", ROWS),
  ],
)
def test_equals_the_formula(dtype, config):
  layer, xs = make_layer(dtype, config), inputs(dtype)
  x = pack(JOBS, xs, N, C, padding=0)
  y, _ = run(layer, x, free_pools(layer), chunks_of(JOBS, N, C), TABLE)
  assert y.dtype == jnp.dtype(dtype)
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  for x, got in zip(xs, unpack(JOBS, y, C), strict=True):
    assert distance(got, expected_layer(layer, x)) <= tolerance


@pytest.mark.parametrize("config", [CONFIG, PLAIN, ROWS])
def test_equals_the_formula_as_a_gpu_computes_it(config):
  """In float32, which its kernels do not take."""
  layer = make_layer(config=config)
  x = pack(JOBS, inputs(), N, C, padding=0)
  given = layer, x, free_pools(layer), chunks_of(JOBS, N, C), TABLE
  with traced_for(HOPPER):
    # A function of its own: `run` may have been traced for a CPU.
    y, _ = jax.jit(lambda layer, *inputs: layer(*inputs))(*given)
  for x, got in zip(inputs(), unpack(JOBS, y, C), strict=True):
    assert distance(got, expected_layer(layer, x)) <= 1e-5


@pytest.mark.parametrize("config", [CONFIG, WINDOW])
def test_packed_chunks_have_the_bits_of_one_at_a_time(config):
  layer = make_layer(config=config)
  chunks = chunks_of(JOBS, N, C)
  x = pack(JOBS, inputs(), N, C, padding=0)
  y, after = run(layer, x, free_pools(layer), chunks, TABLE)
  singles, pools = [], free_pools(layer)
  for i in range(N):
    one = jax.tree.map(lambda field, i=i: field[i : i + 1], chunks)
    out, pools = run(layer, x[i : i + 1], pools, one, TABLE)
    singles.append(out)
  singles = jnp.concatenate(singles)
  assert_same_bits(unpack(JOBS, singles, C), unpack(JOBS, y, C))
  assert_same_bits(pools, after)


@pytest.mark.parametrize("config", [CONFIG, WINDOW])
def test_steps_are_close_to_the_chunk(config):
  layer, (x, _) = make_layer(config=config), inputs()
  pools, job = free_pools(layer), Job(140)
  packed = pack([job], [x[:140]], N, C, padding=0)
  y, _ = run(layer, packed, pools, chunks_of([job], N, C), TABLE)
  (expected,) = unpack([job], y, C)
  before = Job(120)
  packed = pack([before], [x[:120]], N, C, padding=0)
  _, pools = run(layer, packed, pools, chunks_of([before], N, C), TABLE)
  outs, tables = [], np.zeros((2, 8), np.int32)
  tables[1] = TABLE[0]
  for i in range(120, 140):
    rows = Rows(
      read=jnp.full(2, ZERO),
      write=jnp.full(2, NONE),
      position=jnp.array([0, i]),
      active=jnp.array([False, True]),
    )
    out, pools = step(layer, jnp.asarray(x[[0, i]]), pools, rows, tables)
    outs.append(out[1])
  wide = reference.wide(expected[120:])
  assert relative_error(np.stack(outs), wide) <= 1e-4
  assert np.isnan(pools.pages.keys[0]).all()  # the free row wrote nothing


@pytest.mark.parametrize(
  ("implementation", "kind", "has_kernels"),
  [
    *(("auto", HOPPER, True), ("mosaic_gpu", HOPPER, True)),
    *(("xla", HOPPER, False), ("mosaic_tpu", TPUS[0], False)),
  ],
)
def test_steps_are_computed_by_the_kernels_of_a_gpu(
  implementation, kind, has_kernels
):
  """On a TPU its own is taken, by that name too."""
  config = dataclasses.replace(CONFIG, head_width=64)
  numerics = Numerics(dtype="bfloat16", implementation=implementation)
  layer = config.make(D, numerics, rngs=nnx.Rngs(0))
  pools = config.keeps(D, numerics).zeros(slots=0, pages=PAGES)
  index = jnp.zeros(N, jnp.int32)
  rows = Rows(index, index, index, index == 0)
  x = jnp.zeros((N, D), jnp.bfloat16)
  text = lowered(step, layer, x, pools, rows, jnp.asarray(TABLE), kind=kind)
  for kernel in ("lattice_attention_ranges", "lattice_attention_combine"):
    assert (kernel in text) == has_kernels
  on_tpu = "lattice_attention_step" in text and "tpu_custom_call" in text
  assert on_tpu == (kind == TPUS[0])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"attention_window": 0},
      "attention_window is 0; it must be an int above 0 or None",
    ),
    ({"row_norm": True}, "head_norm and row_norm are True; only one may be"),
  ],
)
def test_what_cannot_work_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **changes)
