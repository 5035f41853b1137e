"""Latent attention: keys and values of every head made, as nothing here is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.layers import LatentAttentionConfig, Numerics
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.kernels.reference import causal_attention, relative_error
from tests.layers import reference

C, D, N = 16, 48, 4
JOBS = Job(40), Job(10)
TABLE = np.zeros((N, 8), np.int32)
TABLE[0, :3], TABLE[1, 0] = [4, 1, 3], 0
run = jax.jit(lambda layer, *inputs: layer(*inputs))
step = jax.jit(lambda layer, *inputs: layer.step(*inputs))


@functools.cache
def make_layer(dtype):
  config = LatentAttentionConfig(
    heads=3, latent_width=20, key_width=16, shared_width=8, value_width=12
  )
  numerics = Numerics(dtype=dtype, chunk=C, ladder=(4,))
  layer = config.make(D, numerics, rngs=nnx.Rngs(0))
  layer.latent_norm[...] = jnp.linspace(0.5, 2.0, 20).astype(dtype)
  layer.in_query[...] *= 3  # a pointed softmax
  return layer


def pages(layer):
  kept = layer.config.keeps(D, layer.numerics).zeros(slots=0, pages=5)
  return jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), kept)


def inputs(dtype):
  random = np.random.default_rng(0)
  return [
    np.asarray(jnp.asarray(random.normal(size=(job.length, D)), dtype))
    for job in JOBS
  ]


def expected_layer(layer, x):
  """The layer in float64, with the keys and values of all heads."""
  c, x = layer.config, reference.wide(x)
  q = (x @ reference.wide(layer.in_query[...]).T).reshape(len(x), c.heads, -1)
  latent = x @ reference.wide(layer.in_latent[...]).T
  made, shared = np.split(latent, [c.latent_width], axis=1)
  made = reference.rms(made, c.eps) * reference.wide(layer.latent_norm[...])
  k, v = (
    np.einsum("tl,hkl->thk", made, reference.wide(weight[...]))
    for weight in (layer.key_up, layer.value_up)
  )
  shared = np.repeat(shared[:, None], c.heads, axis=1)
  k = np.concatenate([k, shared], axis=2)
  out = causal_attention(q * k.shape[2] ** -0.5, k, v)
  return out.reshape(len(x), -1) @ reference.wide(layer.out[...]).T


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_attention_to_the_keys_and_values_of_every_head(dtype):
  layer, xs = make_layer(dtype), inputs(dtype)
  x = pack(JOBS, xs, N, C, padding=0)
  y, _ = run(layer, x, pages(layer), chunks_of(JOBS, N, C), TABLE)
  tolerance = 1e-5 if dtype == "float32" else 3e-2
  for x, got in zip(xs, unpack(JOBS, y, C), strict=True):
    assert reference.distance(got, expected_layer(layer, x)) <= tolerance


def test_steps_equal_it_too():
  layer, (x, _) = make_layer("float32"), inputs("float32")
  pools, outs = pages(layer), []
  for i in range(20):
    rows = Rows(
      read=jnp.array([ZERO, ZERO]),
      write=jnp.array([NONE, NONE]),
      position=jnp.array([0, i]),
      active=jnp.array([False, True]),
    )
    tokens = jnp.asarray(x[[0, i]])
    out, pools = step(layer, tokens, pools, rows, jnp.asarray(TABLE[[1, 0]]))
    outs.append(out[1])
  expected = expected_layer(layer, x[:20])
  assert relative_error(np.stack(outs), expected) <= 1e-5


def test_a_page_holds_one_latent_for_all_heads():
  kept = make_layer("bfloat16").config.keeps(D, Numerics(dtype="bfloat16"))
  (latents,) = jax.tree.leaves(kept)
  assert (latents.shape, latents.dtype) == ((64, 1, 28), jnp.bfloat16)


def test_what_cannot_work_is_refused():
  config = make_layer("float32").config
  with pytest.raises(ValueError, match=r"page_dtype is 'int8'; .* None"):
    config.keeps(D, Numerics(page_dtype="int8"))
  with pytest.raises(ValueError, match=r"heads is 0; .* at least 1"):
    LatentAttentionConfig(
      heads=0, latent_width=8, key_width=8, shared_width=8, value_width=8
    )
