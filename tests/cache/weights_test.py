"""Weights that are not those of a configuration: refused, without harm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, PrefixCache, decode, prefill
from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.placement import PlacementPolicy
from tests.models_for_tests import small_config, small_model

pytestmark = pytest.mark.usefixtures("unchecked_types")

PROMPT = list(range(40))


def deleted(x):
  x.delete()
  return x


WRONG = {
  "half": (lambda x: x.astype(jnp.float16), r"is float16\[64\]"),
  "whole": (lambda x: x.astype(jnp.int32), r"is int32\[64\]"),
  "short": (lambda x: x[:-1], r"is float32\[63\]"),
  "axis": (lambda x: x[None], r"is float32\[1, 64\]"),
  "empty": (lambda x: x[:0], r"is float32\[0\]"),
  "number": (lambda _: 1.0, "is no array but float"),
  "text": (lambda _: "x", "is no array but str"),
  "shape": (
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    "is no array but ShapeDtypeStruct",
  ),
  "masked": (np.ma.masked_array, "is no array but MaskedArray"),
  "objects": (lambda x: np.asarray(x, object), "is an array of object"),
  "texts": (lambda x: np.full(x.shape, "a"), "is an array of <U1"),
  "order": (lambda x: np.asarray(x, ">f4"), "is an array of >f4"),
  "times": (lambda x: np.zeros(x.shape, "m8[s]"), "is an array of timedelta"),
  "keys": (
    lambda x: jax.random.split(jax.random.key(0), x.shape),
    "is an array of key",
  ),
  "deleted": (deleted, "is gone"),
  "none": (lambda _: None, "25 weights; its configuration makes 26"),
}


def with_first(change, seed=0):
  """A model whose first weight is another."""
  model = HybridDecoder(small_config(), rngs=nnx.Rngs(seed))
  leaves, structure = jax.tree.flatten(model)
  return jax.tree.unflatten(structure, [change(leaves[0]), *leaves[1:]])


@pytest.fixture(scope="module")
def lived_in():
  cache = PrefixCache(
    small_model(),
    capacity="1MiB",
    placement=PlacementPolicy("last", chunk=16),
  )
  return cache, prefill(small_model(), cache, [PROMPT])


@pytest.mark.parametrize("kind", WRONG)
def test_weights_of_another_configuration_are_refused(lived_in, kind):
  """Where they were taken the cache was emptied, and its next call failed."""
  cache, first = lived_in
  change, told = WRONG[kind]
  wrong = with_first(change)
  before = cache.store.stats(), cache.sequences
  calls = [cache.replace_weights, lambda m: PrefixCache(m, capacity="1MiB")]
  if kind != "deleted":  # It has a sentence of its own.
    calls.append(lambda m: prefill(m, cache, [PROMPT]))
  for call in calls:
    with pytest.raises(ValueError, match=rf"^model.* {told}") as caught:
      call(wrong)
    assert "\n" not in str(caught.value)
    assert (cache.store.stats(), cache.sequences) == before
  again = prefill(small_model(), cache, [PROMPT])
  assert again.reports[0].resumed == 32
  assert differing_bits(again.logits, first.logits) == 0
  cache.release(again.sequences)
  twin = cache.fork(first.sequences[0])
  cache.release(decode(small_model(), cache, [twin], [1]).sequences)


def test_weights_of_numpy_in_64_bits_are_taken():
  """JAX makes 32 of them."""
  wide = with_first(lambda x: np.asarray(x, np.float64))
  cache = PrefixCache(wide, capacity="1MiB")
  assert prefill(wide, cache, [PROMPT]).logits[0].shape == (512,)
