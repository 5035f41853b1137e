"""How long heads remember when a training begins."""

import jax
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, ModelConfig, Numerics
from sparse_prefix_jax.layers import Branch, GatedDeltaNetConfig, Mamba2Config
from sparse_prefix_jax.training.initialization import (
  set_time_constants,
  tie_queries_to_keys,
)

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


@pytest.mark.parametrize("ends", [(0.0, 8.0), (9.0, 8.0), (1.0, float("inf"))])
def test_time_constants_that_are_none_are_refused(ends):
  model = HybridDecoder(CONFIG, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"time constants are .*above 0 and asc"):
    set_time_constants(model, *ends)
