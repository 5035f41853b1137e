"""The shared expert against float64; a step does not see its row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.kernels.chunks import Rows
from sparse_prefix_jax.layers import BranchPools, Numerics, SharedExpertConfig
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.layers import reference

C, D, N = 16, 64, 4
TABLE = np.zeros((N, 8), np.int32)
run = jax.jit(lambda layer, *inputs: layer(*inputs)[0])
step = jax.jit(lambda layer, *inputs: layer.step(*inputs)[0])


@functools.cache
def make_layer(dtype):
  numerics = Numerics(dtype=dtype, chunk=C, ladder=(4,))
  return SharedExpertConfig(hidden=128).make(D, numerics, rngs=nnx.Rngs(0))


def expected(layer, x):
  x, inner = reference.wide(x), layer.expert
  gate, up, down = (
    reference.wide(w[...]).T for w in (inner.gate, inner.up, inner.down)
  )
  opened = reference.sigmoid(x @ reference.wide(layer.opening[...]))
  return opened[:, None] * ((reference.silu(x @ gate) * (x @ up)) @ down)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_formula(dtype):
  layer, job = make_layer(dtype), Job(37)
  x = np.random.default_rng(0).normal(size=(37, D))
  x = np.asarray(jnp.asarray(x, dtype))
  packed = pack([job], [x], N, C, padding=0)
  y = run(layer, packed, BranchPools(), chunks_of([job], N, C), TABLE)
  (got,) = unpack([job], y, C)
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  assert got.dtype == x.dtype
  assert reference.distance(got, expected(layer, x)) <= tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_does_not_see_its_row(dtype):
  layer = make_layer(dtype)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, D)), dtype)
  zeros = jnp.zeros(4, jnp.int32)
  rows = Rows(zeros, zeros, zeros, zeros == 0)
  y, moved = (
    step(layer, u, BranchPools(), rows, TABLE) for u in (x, jnp.roll(x, 1, 0))
  )
  assert differing_bits(jnp.roll(moved, -1, 0), y) == 0
  assert reference.distance(y, expected(layer, x)) <= 2e-2
