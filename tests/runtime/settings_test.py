"""What users may have set in JAX changes no bit, and breaks nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  HybridDecoder,
  PrefixCache,
  decode,
  prefill,
  preset,
  scan_with_capture,
)
from sparse_prefix_jax.layers import AttentionConfig, Numerics, SwiGLUConfig
from sparse_prefix_jax.runtime import sampler
from sparse_prefix_jax.serving.sampling import Sampling, sampling_rows
from sparse_prefix_jax.training.optimization import (
  TrainState,
  make_optimizer,
  make_step,
)
from sparse_prefix_jax.training.segments import (
  labelled_answers,
  segmented_gradient,
)
from tests.training.models import CONFIG
from tests.trees import assert_same_bits

# Annotations name types of 32 bits; where those of 64 are on, indices have 64.
pytestmark = pytest.mark.usefixtures("unchecked_types")

# Together they have every kind of layer.
EVERY_KIND = (
  "qwen3_5_moe",
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
    out = model.scan(carry, tokens, capture_at=(64,))
    return out, model.cell(carry, tokens[:, 0])

  def loss(model, tokens):
    return run(model, tokens)[0].y.sum(dtype=jnp.float32)

  # Promotion is strict in tests: no two widths meet, not even of integers.
  with jax.enable_x64(True):
    model = nnx.eval_shape(
      lambda: HybridDecoder(preset(name), rngs=nnx.Rngs(0))
    )
    tokens = jax.ShapeDtypeStruct((2, 100), jnp.int32)
    results = [jax.eval_shape(f, model, tokens) for f in (run, jax.grad(loss))]
  assert {
    leaf.dtype.itemsize for leaf in jax.tree.leaves((model, results))
  } <= {1, 2, 4}


def test_a_cache_has_the_same_bits_where_64_bits_are_the_default():
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))

  def served():
    cache, out = PrefixCache(model, capacity="1MiB"), []
    for end in (7, 8):
      found = prefill(model, cache, [[*range(40), end]])
      step = decode(model, cache, found.sequences, [3])
      cache.release(step.sequences)
      out.append((found.logits, step.logits))
    assert found.reports[0].resumed == 32
    return out

  expected = served()
  with jax.enable_x64(True):
    assert_same_bits(served(), expected)


def test_a_step_of_training_has_the_same_bits_where_64_are_the_default():
  tokens, answers = jnp.arange(32)[None], jnp.array([[9, 20]])

  def trained():
    model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
    state = TrainState(model, make_optimizer(4).init(model))
    for _ in range(3):
      state, report = make_step(4)(state, tokens, answers)
    return nnx.state(state.model), report

  expected = trained()
  with jax.enable_x64(True):
    assert_same_bits(trained(), expected)


def test_scans_of_parts_keep_their_types_where_64_bits_are_the_default():
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  x = jnp.arange(10, dtype=jnp.float32)

  def segments(tokens, answers):
    data = labelled_answers(tokens, answers)
    carry = model.initialize_carry(1, 64)
    return segmented_gradient(model, carry, data).loss

  def captured(x):
    out = scan_with_capture(lambda c, x: (c + x, c), x[0], x, capture_at=(3, 5))
    return out.captured

  tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  answers = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  expected = captured(x)
  with jax.enable_x64(True):
    assert jax.eval_shape(segments, tokens, answers).dtype == jnp.float32
    assert_same_bits(captured(x), expected)


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


@pytest.mark.slow  # Operation by operation: half a minute.
def test_attention_runs_where_nothing_is_compiled():
  """`jax_disable_jit` hands loops of the number 0 a number of Python."""
  config = AttentionConfig(heads=2, kv_heads=1, head_width=8, rotary_width=4)
  layer = config.make(8, Numerics(chunk=16, ladder=(1,)), rngs=nnx.Rngs(0))
  carry, x = layer.initialize_carry((1, 8), capacity=16), jnp.ones((1, 3, 8))
  expected = layer.scan(carry, x).y
  with jax.disable_jit():
    y = layer.scan(carry, x).y
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_draws_are_made_where_nothing_is_compiled():
  vocab = 8
  logits = np.tile(np.arange(vocab, dtype=np.float32), (2, 1))
  rows = sampling_rows([Sampling(temperature=0.5, top_p=0.5)] * 2, vocab)
  inputs = logits, rows, sampler.no_counts(vocab, 2), np.zeros(2, np.int32)
  with jax.disable_jit():
    drawn = sampler.sample(*inputs)[0]
  assert np.asarray(drawn.ids).tolist() == [vocab - 1] * 2
