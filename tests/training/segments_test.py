"""Segments of a long document against one pass, and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, ModelConfig, Numerics
from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  Mamba2Config,
)
from sparse_prefix_jax.training.segments import (
  Labelled,
  labelled_answers,
  segment_length,
  segmented_gradient,
  weighted_loss,
)

CONFIG = ModelConfig(
  vocab_size=64,
  width=32,
  branches=(
    Branch(Mamba2Config(heads=2, groups=1, head_width=16, state_width=16)),
    Branch(
      AttentionConfig(
        heads=2, kv_heads=1, head_width=16, rotary_width=8, attention_window=24
      )
    ),
  ),
  numerics=Numerics(chunk=16, ladder=(2,), max_length=1024),
)
TOKENS = 256


@functools.cache
def problem():
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  ids = np.random.default_rng(0).integers(0, 64, (2, TOKENS))
  answers = np.array([[70, 250], [15, 128]])
  data = labelled_answers(jnp.asarray(ids), jnp.asarray(answers))
  return model, model.initialize_carry(2, TOKENS), data


run = jax.jit(functools.partial(segmented_gradient, segment=64))
one_pass = jax.jit(jax.value_and_grad(weighted_loss, has_aux=True))


@functools.cache
def segmented(horizon):
  return run(*problem(), horizon=jnp.int32(horizon))


def distances(found, expected):
  """Relative distances of the leaves of two gradients."""
  return [
    np.linalg.norm(x - y) / np.linalg.norm(y)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True)
  ]


def test_the_gradient_in_segments_is_that_of_one_pass():
  (loss, carry), gradient = one_pass(*problem())
  out = segmented(4)
  assert abs(out.loss - loss) <= 1e-5 * abs(loss)
  assert max(distances(out.model, gradient)) <= 1e-5
  for x, y in zip(*map(jax.tree.leaves, (out.carry, carry)), strict=True):
    assert np.array_equal(x, y)


@pytest.mark.slow
def test_a_cut_gradient_is_that_of_segments_on_their_own():
  model, carry, data = problem()
  total = jax.tree.map(jnp.zeros_like, model)
  for start in range(0, TOKENS, 64):
    part = Labelled(*(x[:, start : start + 64] for x in data))
    (_, carry), gradient = one_pass(model, carry, part)
    total = jax.tree.map(jnp.add, total, gradient)
  assert max(distances(segmented(1).model, total)) <= 1e-5
  assert max(distances(segmented(4).model, total)) > 1e-2


@pytest.mark.slow
def test_what_is_kept_grows_with_the_square_root():
  """Beyond inputs; the layer of this model keeps no keys and values."""
  config = CONFIG.replace(branches=CONFIG.branches[:1], max_length=1 << 15)
  model = HybridDecoder(config, rngs=nnx.Rngs(0))

  def kept(tokens):
    data = Labelled(*jnp.zeros((3, 1, tokens), jnp.int32))
    data = data._replace(weights=jnp.zeros((1, tokens)))
    carry = model.initialize_carry(1, tokens)
    lowered = jax.jit(segmented_gradient).lower(model, carry, data)
    memory = lowered.compile().memory_analysis()
    return memory.temp_size_in_bytes - 3 * data.token_ids.nbytes

  assert kept(16384) <= 4 * kept(1024)


def test_segments_that_do_not_fit_are_refused():
  assert segment_length(6 * 64, 64) == 3 * 64
  with pytest.raises(ValueError, match="has 100 tokens; it must be a multip"):
    segment_length(100, 64)
  model, carry, data = problem()
  with pytest.raises(ValueError, match="segment is 40; it must be a multiple"):
    segmented_gradient(model, carry, data, segment=40)
  with pytest.raises(ValueError, match=r"segment is 96; .* divides 256"):
    segmented_gradient(model, carry, data, segment=96)
  with pytest.raises(ValueError, match=r"segment is 64\.0; it must be"):
    segmented_gradient(model, carry, data, segment=64.0)
  for horizon in (0, 1.5, True):
    with pytest.raises(ValueError, match=f"^horizon .*{horizon}"):
      segmented_gradient(model, carry, data, horizon=horizon)
  with pytest.raises(ValueError, match=r"data is \(.*of `labelled_answers`"):
    segmented_gradient(model, carry, tuple(data))
  with pytest.raises(ValueError, match="model is None; it must be "):
    segmented_gradient(None, carry, data)
  with pytest.raises(ValueError, match="labels of segmented_gradient is "):
    segmented_gradient(model, carry, data._replace(labels=[1]))
  with pytest.raises(ValueError, match="carry is tuple; it must be an Explic"):
    segmented_gradient(model, tuple(carry), data)
  with pytest.raises(ValueError, match="reach to 256; the carry has room for "):
    segmented_gradient(model, model.initialize_carry(2, 128), data)
  with pytest.raises(
    ValueError, match=r"length of scan has shape \(2,\) .* b is 1 "
  ):
    segmented_gradient(model, model.initialize_carry(1, TOKENS), data)


@pytest.mark.usefixtures("unchecked_types")
def test_ids_and_labels_outside_of_the_vocabulary_are_refused():
  model, carry, data = problem()
  for field, sentence in (
    ("token_ids", "token_ids holds 64; an id is 0 to 63, of vocab_size"),
    ("labels", "labels holds 64, with a weight; an id is 0 to 63, of vocab"),
  ):
    wrong = data._replace(**{field: jnp.full((2, TOKENS), 64)})
    with pytest.raises(ValueError, match=sentence):
      segmented_gradient(model, carry, wrong)
    fractions = data._replace(**{field: data.weights})
    with pytest.raises(ValueError, match=f"{field} has dtype float32; it must"):
      segmented_gradient(model, carry, fractions)


@pytest.mark.parametrize("ignored", [-100, 64])
def test_what_weighs_nothing_may_have_any_label(ignored):
  """Data for others marks it so, often by -100."""
  model, carry, data = problem()
  marked = jnp.where(data.weights == 0, ignored, data.labels)
  (loss, _), gradient = one_pass(*problem())
  marked = data._replace(labels=marked)
  (same, _), again = one_pass(model, carry, marked)
  assert same == loss
  for x, y in zip(*map(jax.tree.leaves, (gradient, again)), strict=True):
    assert np.array_equal(x, y)
  weighs = marked._replace(weights=jnp.ones_like(data.weights))
  assert np.isnan(one_pass(model, carry, weighs)[0][0])


def test_segments_in_bfloat16_are_summed_in_float32():
  """Sixteen segments are alike; but for the last, each weighs 1 / 300 of it."""
  config = CONFIG.replace(branches=CONFIG.branches[:1], dtype="bfloat16")
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  ids = jnp.asarray(np.tile(np.random.default_rng(0).integers(0, 64, 16), 16))
  last = np.repeat([0, 1], [240, 16])
  first = (1 - last) / 300
  alone = jax.jit(functools.partial(segmented_gradient, segment=16, horizon=1))
  both, *parts = (
    alone(
      model,
      model.initialize_carry(1, TOKENS),
      Labelled(ids[None], jnp.roll(ids, -1)[None], jnp.float32(weights)[None]),
    ).model
    for weights in (first + last, first, last)
  )
  total = jax.tree.map(lambda x, y: np.float64(x) + np.float64(y), *parts)
  assert max(distances(jax.tree.map(np.float64, both), total)) < 1e-2
