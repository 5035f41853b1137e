"""What heads remember when a training begins, and what keys tell apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, ModelConfig, Numerics, preset
from sparse_prefix_jax.layers import Branch, GatedDeltaNetConfig, Mamba2Config
from sparse_prefix_jax.training.initialization import (
  initialize_for_recall,
  quieten_branches,
  separate_taps,
  set_time_constants,
  tie_queries_to_keys,
)
from sparse_prefix_jax.workloads.recall.vocabulary import ids_of

CONFIG = ModelConfig(
  vocab_size=64,
  width=32,
  branches=(
    Branch(Mamba2Config(heads=4, groups=1, head_width=8, state_width=8)),
    Branch(
      GatedDeltaNetConfig(
        key_heads=2, value_heads=4, key_width=8, value_width=8
      )
    ),
  ),
  numerics=Numerics(ladder=(4,)),
)


def test_heads_forget_after_8_to_8192_tokens():
  """By the formulas of the layers, for an input that no gate depends on."""
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  set_time_constants(model)
  mamba, delta = (branch.sub for branch in model.branches)
  for layer, bias in ((mamba, mamba.step_bias), (delta, delta.decay_bias)):
    step = np.log1p(np.exp(np.asarray(bias[...], np.float64)))
    decay = -np.exp(np.asarray(layer.log_rate[...], np.float64)) * step
    expected = 8.0 * 1024 ** (np.arange(4) / 3)
    assert np.allclose(-1 / decay, expected, rtol=1e-5)
  assert np.allclose(np.log1p(np.exp(mamba.step_bias[...])), 1.0)


def test_gates_hardly_depend_on_the_input():
  model, other = (HybridDecoder(CONFIG, rngs=nnx.Rngs(0)) for _ in range(2))
  set_time_constants(model)
  for changed, drawn in zip(model.branches, other.branches, strict=True):
    name = "in_step" if hasattr(drawn.sub, "in_step") else "in_decay_beta"
    before, after = (getattr(b.sub, name)[...] for b in (drawn, changed))
    assert np.allclose(after, 0.1 * before)


def test_queries_begin_as_the_same_function_as_keys():
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  before = [np.asarray(leaf) for leaf in jax.tree.leaves(model)]
  tie_queries_to_keys(model)
  mamba, delta = (branch.sub for branch in model.branches)
  for weight in (mamba.in_mixed[...].T, mamba.conv[...]):
    assert np.array_equal(weight[:, 32:40], weight[:, 40:48])  # keys, queries
  for weight in (delta.in_qkv[...].T, delta.conv[...]):
    assert np.array_equal(weight[:, :16], weight[:, 16:32])  # queries, keys
  changed = [
    not np.array_equal(x, y)
    for x, y in zip(before, jax.tree.leaves(model), strict=True)
  ]
  assert sum(changed) == 4


def test_every_branch_begins_by_adding_a_twentieth():
  model, drawn = (
    HybridDecoder(preset("recall"), rngs=nnx.Rngs(0)) for _ in "ab"
  )
  quieten_branches(model)
  last = ("out", "down", "out", "down", "out", "down")
  for name, after, before in zip(
    last, model.branches, drawn.branches, strict=True
  ):
    changed, weight = (getattr(b.sub, name)[...] for b in (after, before))
    assert np.allclose(changed, 0.05 * weight)


@pytest.mark.parametrize(
  ("words", "first"),
  [(2, [0, 1] * 4), (3, [0, 1, 2, 0, 1, 2, 0, 1]), (9, [0, 1, 2, 3] * 2)],
)
def test_channels_of_every_head_begin_with_one_tap(words, first):
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  separate_taps(model, words)
  conv = np.asarray(model.branches[1].sub.conv[...])
  assert conv.shape == (4, 64)
  assert (conv.sum(0) == 1).all() and (np.sort(conv, 0)[:3] == 0).all()
  heads = conv.argmax(0)[:32].reshape(4, 8)  # two of queries, two of keys
  assert heads.tolist() == [first] * 4
  assert (conv.argmax(0)[32:] == 3).all()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("words", [0, 2.5, True, "2"])
def test_words_that_are_no_count_are_refused(words):
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  with pytest.raises(
    ValueError, match=f"words is {words!r}; it must be an int"
  ):
    separate_taps(model, words)


def _keys_and_query():
  """The keys at four values of facts and the query of the first one's question.

  In float64, by the formula of the layer, of what reaches it in a model that
  has learned nothing: the final norm of the branches below stands for its own.
  """
  text = (
    "The old road to Lima was long . Anna Berg lives in Oslo . "
    "Hugo Berg keeps a cat . Anna Sato lives in Turku . "
    "Hugo Sato lives in Munich . Where does Anna Berg live ? In"
  )
  ids = jnp.asarray([ids_of(text)], jnp.int32)
  config = preset("recall")
  below = dataclasses.replace(config, branches=config.branches[:4])
  models = [HybridDecoder(c, rngs=nnx.Rngs(0)) for c in (below, config)]
  for model in models:
    initialize_for_recall(model)
  out = models[0].scan(models[0].initialize_carry(*ids.shape), ids)
  layer = models[1].branches[4].sub
  x, weight, conv = (
    np.asarray(a, np.float64)
    for a in (out.y[0], layer.in_qkv[...], layer.conv[...])
  )
  mixed = np.concatenate([np.zeros((4, conv.shape[1])), x @ weight.T])
  seen = sum(conv[i] * mixed[i : i + len(x)] for i in range(5))
  heads = (seen / (1 + np.exp(-seen)))[:, :512].reshape(len(x), 4, 128)
  at = np.array([12, 18, 24, 30, len(x) - 1])
  heads = heads[at] / np.linalg.norm(heads[at], axis=-1, keepdims=True)
  return heads[:4, 2:], heads[4, :2]


def test_a_question_finds_its_fact_and_both_words_of_a_name_count():
  """Without taps and branches set, all four overlap with 0.3 to 0.45."""
  keys, query = _keys_and_query()
  own, last, first, none = (keys * query).sum(-1)
  assert (own > 0.85).all()
  for shared in (last, first):
    assert (shared > 0.3).all() and (shared < 0.65).all()
  assert (none < 0.06).all()


@pytest.mark.parametrize("ends", [(0.0, 8.0), (9.0, 8.0), (1.0, float("inf"))])
def test_time_constants_that_are_none_are_refused(ends):
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"time constants are .*above 0 and asc"):
    set_time_constants(model, *ends)
