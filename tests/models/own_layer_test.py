"""A layer and a family from outside of the package, served with the cache.

Nothing in the package knows them: what they keep and cost is what they say.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import (
  HybridDecoder,
  PlacementPolicy,
  PrefixCache,
  decode,
  memory_plan,
  page_bytes,
  prefill,
  prefill_flops,
  simulate,
  state_bytes,
)
from sparse_prefix_jax.cache import choices
from sparse_prefix_jax.contract import ColdRuns, Schedule, differing_bits
from sparse_prefix_jax.evaluation import ModelSizes, parse_capacity
from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  GatedDeltaNetConfig,
  Norm,
  Numerics,
  ParallelConfig,
  Sublayer,
  SwiGLUConfig,
)
from sparse_prefix_jax.models import ModelConfig
from sparse_prefix_jax.placement import Planner
from sparse_prefix_jax.workloads import token_trace
from tests import toy_family
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.layers import reference
from tests.models_for_tests import LONGEST
from tests.toy_layer import LeakySumConfig
from tests.trees import assert_same_bits

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "own_layer.md"
FIELDS = {
  "vocab_size": 512,
  "hidden_size": 64,
  "pattern": "s-*-s-",
  "channels": 128,
  "num_heads": 4,
  "head_dim": 32,
  "intermediate_size": 128,
  "norm_eps": 1e-5,
  "residual_multiplier": 0.5,
  "embedding_multiplier": 12.0,  # products that are no numbers of float32
}
SMALL = {"chunk": 16, "ladder": (4, 8), "max_length": 256, "head_rows": 32}
LARGE = {"chunk": 64, "max_length": 1024, "head_rows": 64}


@functools.cache
def toy(**changes):
  config = toy_family.read(FIELDS, Numerics(**(SMALL | changes)))
  return HybridDecoder(config, rngs=nnx.Rngs(0))


@functools.cache
def side_by_side(**changes):
  """A mixer that keeps slots and pages, as Falcon-H1's."""
  pair = ParallelConfig(
    (
      GatedDeltaNetConfig(
        key_heads=2, value_heads=4, key_width=32, value_width=32
      ),
      AttentionConfig(heads=4, kv_heads=2, head_width=32, rotary_width=16),
      LeakySumConfig(channels=64),
    )
  )
  feed_forward = Branch(SwiGLUConfig(hidden=128), post=Norm())
  config = ModelConfig(
    vocab_size=512,
    width=64,
    branches=(Branch(pair), feed_forward, Branch(pair), feed_forward),
    numerics=Numerics(**(SMALL | changes)),
  )
  return HybridDecoder(config, rngs=nnx.Rngs(0))


def random_tokens(size, seed=0):
  return np.random.default_rng(seed).integers(0, 512, size).astype(np.int32)


def test_the_layer_equals_its_formula():
  layer = LeakySumConfig(channels=32).make(64, Numerics(), rngs=nnx.Rngs(0))
  jobs = Job(40, writes={0: 1, 2: 2}), Job(7, read=3, writes={0: 3})
  xs = [np.asarray(jax.random.normal(jax.random.key(0), (40, 64)))]
  xs += [xs[0][:7] + 1]
  state = jnp.full((5, 32), jnp.nan).at[3].set(0.5)
  pools = (
    LeakySumConfig(channels=32).keeps(64, Numerics())._replace(slots=state)
  )
  x, chunks = pack(jobs, xs, 5, 16, padding=0), chunks_of(jobs, 5, 16)
  y, after = jax.jit(lambda layer, *inputs: layer(*inputs))(
    layer, x, pools, chunks, jnp.zeros((5, 8), jnp.int32)
  )
  decay = reference.sigmoid(reference.wide(layer.leak[...]))
  begun, slots = (np.zeros(32), np.full(32, 0.5)), ({16: 1, 40: 2}, {7: 3})
  for x, got, total, kept in zip(xs, unpack(jobs, y, 16), begun, slots):
    sums = []
    for row in reference.wide(x) @ reference.wide(layer.enter[...]).T:
      total = decay * total + row
      sums.append(total)
    expected = np.stack(sums) @ reference.wide(layer.out[...]).T
    assert reference.distance(got, expected) <= 1e-5
    for end, slot in kept.items():
      assert reference.distance(after.slots[slot], sums[end - 1]) <= 1e-5
  assert np.isnan(after.slots[jnp.array([0, 4])]).all()


def test_the_family_is_one_configuration_of_branches():
  config = toy().config
  kinds = [branch.sub.kind for branch in config.branches]
  mixers = ["leaky_sum", "attention", "leaky_sum"]
  assert kinds[::2] == mixers and set(kinds[1::2]) == {"swiglu"}
  assert {branch.scale for branch in config.branches} == {0.5}
  assert all(isinstance(branch.sub, Sublayer) for branch in config.branches)
  assert config == toy_family.read(FIELDS, Numerics(**SMALL))


@pytest.mark.parametrize("make", [toy, side_by_side])
def test_cold_resumed_and_decoded_differ_in_no_bit(make):
  model, tokens = make(), random_tokens(90)
  cold = ColdRuns(model, longest=LONGEST).prefill(tokens)
  cache = PrefixCache(model, capacity="2MiB", placement="block:16")
  out = prefill(model, cache, [tokens[:50]], all_logits=True)
  assert differing_bits(out.logits[0], cold.logits[:50]) == 0
  sequences = out.sequences
  for end in range(50, 70):  # through the lattice point 64
    token = tokens[end : end + 1]
    sequences = decode(model, cache, sequences, token).sequences
  cache.release(sequences)
  out = prefill(model, cache, [tokens], all_logits=True)
  assert out.reports[0].resumed == 64
  assert differing_bits(out.logits[0], cold.logits[64:]) == 0
  assert np.abs(cold.logits).max() > 1e-2
  cache.release(out.sequences)


# Falcon-H1 is such a pair too.
SLOW_PAIR = pytest.param(side_by_side, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("dtype", "make"),
  [
    ("float32", toy),
    ("float32", side_by_side),
    pytest.param("bfloat16", toy, marks=pytest.mark.slow),
    pytest.param("bfloat16", side_by_side, marks=pytest.mark.slow),
  ],
)
def test_random_lives_differ_in_no_bit(dtype, make):
  cold, compared = ColdRuns(make(dtype=dtype), longest=LONGEST), 0
  for seed in range(2):
    schedule = Schedule(cold, seed, longest=LONGEST)
    assert schedule.run() == 0
    compared += schedule.compared
  assert compared > 1e6  # bytes: the schedules did something


@pytest.mark.parametrize("make", [toy, SLOW_PAIR])
def test_every_rung_has_the_same_bits(make):
  tokens, rungs = random_tokens(640), (1, 4)
  first, other = (
    ColdRuns(make(ladder=(rung,), **LARGE), longest=640).prefill(tokens)
    for rung in rungs
  )
  assert differing_bits(first.logits, other.logits) == 0
  assert_same_bits(first.pools, other.pools)


def test_bytes_and_operations_are_those_that_the_layers_say():
  config = toy().config
  layer = LeakySumConfig(channels=128)
  assert state_bytes(config) == 2 * 128 * 4
  assert page_bytes(config) == 2 * 16 * 2 * 32 * 4
  others = 2 * 64 * (3 * 128 + 2 * 64) + 3 * 6 * 64 * 128
  flops = prefill_flops(config)
  own = 2 * layer.flops(64, config.numerics).token
  assert flops.linear == own + others and own > 0
  assert flops.quadratic == 4 * 4 * 32 / 2


def test_they_flow_into_memory_plan_and_simulate_and_placement(monkeypatch):
  config = toy().config
  plan = memory_plan(config, "16MiB")
  assert plan.state_bytes == state_bytes(config)
  assert plan.page_bytes == page_bytes(config)
  sizes = ModelSizes.of_model(config, block=16)
  assert (sizes.state_bytes, sizes.cost) == (1024, prefill_flops(config))
  prompt = random_tokens(64)
  trace = token_trace("twice", [prompt, prompt], [0, 0])
  policy = PlacementPolicy("last", chunk=16)

  def saved(capacity):
    held = parse_capacity(f"bytes:{capacity}")
    return simulate(trace, policy, held, sizes=sizes).tokens_saved

  assert saved(1 << 20) == 48
  with pytest.raises(ValueError, match=r"states take 2048 bytes, .* 8192 more"):
    saved(4 * sizes.page_bytes)
  given = []

  def planner(policy, *, cost, **others):
    given.append(cost)
    return Planner(policy, cost=cost, **others)

  monkeypatch.setattr(choices, "Planner", planner)
  PrefixCache(toy(), capacity=1 << 20, placement="optimal:2")
  expected = prefill_flops(config).cumulative(16, 16)
  np.testing.assert_array_equal(given, [expected])


def test_the_page_shows_the_layer():
  """The how-to holds the file of the toy layer, word for word."""
  blocks = re.findall(
    r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
  )
  folder = pathlib.Path(__file__).parents[1]
  assert blocks[0] == (folder / "toy_layer.py").read_text("utf-8")
