import numpy as np
import pytest
from flax import nnx

from benchmarks import layer_profile
from benchmarks.layer_profile import Interval, Operation
from sparse_prefix_jax import HybridDecoder, PrefixCache, prefill, preset

PRODUCT = Operation(("attention", "projection"), contains=False)
NORM = Operation(("attention", "norms"), contains=False)
LOOP = Operation(("gated_delta_net", "recurrence"), contains=True)


def test_instants_are_split_among_what_runs():
  second = 1e9
  shares = layer_profile._shares(
    [
      Interval(0.0, 6 * second, LOOP),
      Interval(1 * second, 3 * second, PRODUCT),
      Interval(2 * second, 4 * second, NORM),
    ]
  )
  assert shares == pytest.approx(
    {
      PRODUCT.scope: 1.5,
      NORM.scope: 1.5,
      LOOP.scope: 3.0,  # only what the two leave
    }
  )


def test_profile_of_a_prefill_adds_up_and_names_every_stage():
  config = preset("tiny")
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  cache = PrefixCache(model, capacity=8 << 20, placement="no_cache")
  tokens = np.arange(512) % config.vocab_size

  def run():
    cache.release(prefill(model, cache, [tokens]).sequences)

  run()
  shares = layer_profile.profile(cache, cache.frozen, run)

  kinds = {kind for kind, _ in shares}
  assert kinds == {*layer_profile.KINDS, "model", "head", "host"}
  stages = {stage for _, stage in shares}
  assert stages >= set(layer_profile.STAGES)
  assert all(seconds >= 0 for seconds in shares.values())
  assert 0 < layer_profile.recurrent_share(shares) < 1
  assert "recurrence" in layer_profile.table(shares)
