"""What users may have set in JAX changes no bit, and breaks nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.layers import Numerics, SwiGLUConfig
from sparse_prefix_jax.runtime import sampler
from sparse_prefix_jax.serving.sampling import Sampling, sampling_rows
from tests.trees import assert_same_bits

# Annotations name types of 32 bits; where those of 64 are on, indices have 64.
pytestmark = pytest.mark.usefixtures("unchecked_types")

# Together they have every kind of layer.
EVERY_KIND = (
  "recurrent_gemma",
  "kimi_linear",
  "nemotron_h",
  "jamba",
  "minimax",
)


@pytest.mark.parametrize("name", [f"{name}_tiny" for name in EVERY_KIND])
def test_nothing_gets_wider_where_64_bits_are_the_default(name):
  def run(model, tokens):
    carry = model.initialize_carry(batch=2, capacity=128)
    out = model.scan(carry, tokens)
    return out, model.cell(carry, tokens[:, 0])

  # Whoever turns them on mixes widths as he likes.
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    model = nnx.eval_shape(
      lambda: HybridDecoder(preset(name), rngs=nnx.Rngs(0))
    )
    tokens = jax.ShapeDtypeStruct((2, 100), jnp.int32)
    results = jax.eval_shape(run, model, tokens)
  assert {
    leaf.dtype.itemsize for leaf in jax.tree.leaves((model, results))
  } <= {1, 2, 4}


def test_draws_are_the_same_where_64_bits_are_the_default():
  vocab, rows = 40, 8
  some = Sampling(temperature=0.5, top_k=9, best=3), Sampling(temperature=2.0)
  logits = np.random.default_rng(0).normal(0, 2, (rows, vocab))
  inputs = logits.astype(np.float32), sampling_rows([*some * 4], vocab)
  positions = np.arange(rows, dtype=np.int32)

  def drawn():
    # The counts are donated.
    return sampler.sample(*inputs, sampler.no_counts(vocab, 2), positions)[0]

  expected = drawn()
  with jax.enable_x64(True):
    assert_same_bits(drawn(), expected)


def test_nothing_that_is_allowed_is_taken_for_a_nan():
  """`jax_debug_nans` stops at an array of them, wherever it is made."""
  config = SwiGLUConfig(hidden=16)
  layer = config.make(8, Numerics(), rngs=nnx.Rngs(0))
  carry, x = layer.initialize_carry((2, 8), capacity=64), jnp.ones((2, 64, 8))
  whole = layer.scan(carry, x).y
  with jax.debug_nans(True):
    assert_same_bits(layer.scan(carry, x).y, whole)
