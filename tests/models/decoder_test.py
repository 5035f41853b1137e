"""The decoder: branches in a row, chunk and step, pools by kind."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks, Rows
from sparse_prefix_jax.layers import BranchPools
from sparse_prefix_jax.models.decoder import map_pools
from sparse_prefix_jax.runtime import programs
from tests.models_for_tests import small_config, small_model
from tests.trees import assert_same_bits

C, SLOTS, PAGES = 16, 8, 40  # as in run_test: one compiled program


def a_group(tokens):
  """50 tokens of one request, the state kept after every chunk."""
  chunks = Chunks(
    read=np.array([ZERO, CARRY, CARRY, CARRY], np.int32),
    write=np.arange(4, dtype=np.int32),
    length=np.array([16, 16, 16, 2], np.int32),
    position=np.arange(4, dtype=np.int32) * C,
    request=np.zeros(4, np.int32),
  )
  table = np.zeros((4, 16), np.int32)
  table[:, :4] = 7, 5, 9, 6
  padded = np.pad(tokens, (0, 64 - tokens.size)).reshape(4, C)
  return programs.Group(padded, chunks, table)


def tokens_of(size):
  ids = np.random.default_rng(0).integers(0, 512, size)
  return ids.astype(np.int32)


def prefilled(model):
  pools = model.init_pools(slots=SLOTS, pages=PAGES)
  group = a_group(tokens_of(50))
  return programs.prefill_group(programs.freeze(model), pools, group)


def test_steps_are_close_to_the_chunk():
  model = small_model()
  hidden, after = prefilled(model)
  expected = np.asarray(hidden).reshape(64, -1)[32:50]
  # The third chunk again, token by token, from the state after the second.
  pools, read = after, 1
  stepped, table = [], np.zeros((4, 16), np.int32)
  table[2, :3] = 7, 5, 20
  for i, token in enumerate(tokens_of(50)[32:48]):
    rows = Rows(
      read=np.array([ZERO, ZERO, read, ZERO], np.int32),
      write=np.array([NONE, NONE, 6, NONE], np.int32),
      position=np.array([0, 0, 32 + i, 0], np.int32),
      active=np.arange(4) == 2,
    )
    inputs = programs.Step(np.full(4, token), rows, table)
    out, pools = programs.decode_step(programs.freeze(model), pools, inputs)
    stepped.append(out[2])
    read = 6
  scale = np.abs(expected).max()
  np.testing.assert_allclose(stepped, expected[:16], atol=1e-4 * scale)
  states, pages = pools[0].slots, pools[2].pages
  np.testing.assert_allclose(
    states.recurrent_state[6], states.recurrent_state[2], atol=1e-4
  )
  np.testing.assert_allclose(pages.keys[20], pages.keys[9], atol=1e-4)


def test_pools_are_one_entry_per_branch():
  kinds = ("attention", "gated_delta_net", "attention")
  model = HybridDecoder(small_config(layer_types=kinds), rngs=nnx.Rngs(0))
  pools = model.init_pools(slots=3, pages=5)
  assert len(pools) == 6
  marked = map_pools(pools, lambda x: x + 1, lambda x: x - 1)
  for i, value in ((0, -1), (2, 1), (4, -1)):
    leaves = jax.tree.leaves(marked[i])
    assert len(leaves) == 2
    assert all((leaf == value).all() for leaf in leaves)
    assert marked[i + 1] == BranchPools()  # the feed-forward layer
  chex.assert_shape([*pools[0].pages], (5, C, 2, 32))
  chex.assert_axis_dimension(pools[2].slots.conv_state, 0, 3)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_the_embedding_or_a_matrix_of_its_own(tied):
  config = small_config(tie_embeddings=tied)
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  model.norm[...] = model.norm[...] + 0.5
  hidden = jax.random.normal(jax.random.key(0), (32, 64))
  logits = model.head(hidden)
  weight = model.embedding if tied else model.unembedding
  x = np.asarray(hidden).astype(np.float64)
  x /= np.sqrt((x**2).mean(-1, keepdims=True) + config.final_norm.eps)
  expected = 1.5 * x @ np.asarray(weight[...]).astype(np.float64).T
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert hasattr(model, "unembedding") != tied


def test_parameters_are_those_of_the_seed():
  one, same, other = (
    jax.tree.leaves(HybridDecoder(small_config(), rngs=nnx.Rngs(seed)))
    for seed in (0, 0, 1)
  )
  assert_same_bits(one, same)
  assert any(np.any(x != y) for x, y in zip(one, other, strict=True))
