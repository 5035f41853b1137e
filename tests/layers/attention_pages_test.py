"""What attention keeps in int8: slots and pages, in any packing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.contract.bits import litter_of
from sparse_prefix_jax.layers import AttentionConfig, KeysValues, Numerics
from sparse_prefix_jax.layers.attention_pages import kept_pages
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.layers.reference import distance
from tests.trees import assert_same_bits

C, D, N = 64, 64, 5
CONFIG = AttentionConfig(heads=4, kv_heads=2, head_width=32, rotary_width=16)
WINDOW = dataclasses.replace(CONFIG, attention_window=40)
JOBS = Job(150, writes={1: 0, 2: 3}), Job(70, writes={1: 1})
TABLE = np.zeros((N, 8), np.int32)
TABLE[0, :3], TABLE[1, :2] = (7, 2, 11), (5, 3)

run = jax.jit(lambda layer, *inputs: layer(*inputs))


def make_layer(config=CONFIG, **fields):
  return config.make(D, Numerics(**fields), rngs=nnx.Rngs(0))


def inputs():
  random = np.random.default_rng(0)
  return [random.standard_normal((j.length, D), np.float32) for j in JOBS]


def free_pools(layer):
  pools = layer.config.keeps(D, layer.numerics).zeros(slots=4, pages=12)
  return jax.tree.map(litter_of, pools)


def run_packed(layer):
  x = pack(JOBS, inputs(), N, C)
  return run(layer, x, free_pools(layer), chunks_of(JOBS, N, C), TABLE)


def test_nothing_is_kept_in_slots_without_int8():
  kept = kept_pages(2, 32, Numerics(dtype="bfloat16"))
  assert kept.slots == () and isinstance(kept.pages, KeysValues)
  assert {leaf.dtype for leaf in kept.pages} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("config", [CONFIG, WINDOW])
def test_quantised_is_close_to_exact_and_its_first_chunk_is_exact(config):
  """The first chunk of a request attends nothing but itself."""
  exact, _ = run_packed(make_layer(config))
  quantised, _ = run_packed(make_layer(config, page_dtype="int8"))
  for x, y in zip(*(unpack(JOBS, out, C) for out in (exact, quantised))):
    assert 0 < distance(y, x) < 0.02
    np.testing.assert_allclose(y[:C], x[:C], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, WINDOW])
def test_packed_chunks_have_the_bits_of_one_at_a_time(config):
  layer, chunks = make_layer(config, page_dtype="int8"), chunks_of(JOBS, N, C)
  x, (y, after) = pack(JOBS, inputs(), N, C), run_packed(layer)
  singles, pools = [], free_pools(layer)
  for i in range(N):
    one = jax.tree.map(lambda field, i=i: field[i : i + 1], chunks)
    out, pools = run(layer, x[i : i + 1], pools, one, TABLE)
    singles.append(out)
  singles = unpack(JOBS, jnp.concatenate(singles), C)
  assert_same_bits(singles, unpack(JOBS, y, C))
  assert_same_bits(pools, after)


def test_cut_chunks_are_in_slots_and_whole_ones_in_pages():
  _, pools = run_packed(make_layer(page_dtype="int8"))
  for slots in map(np.asarray, pools.slots):
    assert not slots[0].any()  # a lattice point: no chunk runs there
    for slot, tokens in ((3, 22), (1, 6)):
      assert slots[slot, :tokens].all() and not slots[slot, tokens:].any()
    assert np.isnan(slots[2]).all()
  written = [p for p in range(12) if np.isfinite(pools.pages.key_scales[p, 0])]
  assert written == [2, 5, 7]
