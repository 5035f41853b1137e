"""Every sublayer is made, asked and called as the protocols say."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import ZERO, Rows
from sparse_prefix_jax.layers import (
  AttentionConfig,
  BranchPools,
  GatedDeltaNetConfig,
  Numerics,
  ParallelConfig,
  Sublayer,
  SublayerModule,
  SwiGLUConfig,
)

D, NUMERICS = 64, Numerics(chunk=16, ladder=(4,))
NET = GatedDeltaNetConfig(
  key_heads=1, value_heads=2, key_width=32, value_width=16
)
ATTENTION = AttentionConfig(heads=2, kv_heads=1, head_width=32, rotary_width=16)
FEED_FORWARD = SwiGLUConfig(hidden=128)
SUBS = [NET, ATTENTION, FEED_FORWARD, ParallelConfig((NET, ATTENTION))]


def kind_of(sub):
  return sub.kind


@pytest.mark.parametrize("sub", SUBS, ids=kind_of)
def test_signatures_are_those_of_the_protocols(sub):
  module = sub.make(D, NUMERICS, rngs=nnx.Rngs(0))
  cases = [(sub, Sublayer, name) for name in ("make", "keeps", "flops")]
  cases += [(sub, Sublayer, "product_widths")]
  cases += [(module, SublayerModule, name) for name in ("__call__", "step")]
  for thing, protocol, name in cases:
    expected = inspect.signature(getattr(protocol, name)).parameters
    parameters = inspect.signature(getattr(type(thing), name)).parameters
    assert list(parameters) == list(expected)
    for key, parameter in parameters.items():
      assert parameter.kind == expected[key].kind


@pytest.mark.parametrize("sub", SUBS, ids=kind_of)
def test_what_is_kept_is_what_goes_through_a_step(sub):
  """Declared shapes make pools, and the module returns pools of that form."""
  module = sub.make(D, NUMERICS, rngs=nnx.Rngs(0))
  pools = sub.keeps(D, NUMERICS).zeros(slots=3, pages=5)
  counts = {leaf.shape[0] for leaf in jax.tree.leaves(pools.slots)}
  assert counts <= {3}
  assert {leaf.shape[0] for leaf in jax.tree.leaves(pools.pages)} <= {5}
  rows = Rows(
    read=jnp.full(2, ZERO),
    write=jnp.arange(2),
    position=jnp.zeros(2, jnp.int32),
    active=jnp.ones(2, bool),
  )
  table = jnp.zeros((2, 8), jnp.int32).at[1].set(1)
  y, after = module.step(jnp.ones((2, D)), pools, rows, table)
  assert y.shape == (2, D)
  assert jax.tree.structure(after) == jax.tree.structure(pools)
  same = jax.tree.map(lambda x, y: x.shape == y.shape, pools, after)
  assert all(jax.tree.leaves(same))


def test_every_array_says_what_it_is():
  """A pair of sublayers keeps slots and pages, each array its own."""
  pair = ParallelConfig((NET, ATTENTION)).keeps(D, NUMERICS)
  states, pages = NET.keeps(D, NUMERICS), ATTENTION.keeps(D, NUMERICS)
  assert jax.tree.leaves(pair.slots) == jax.tree.leaves(states.slots)
  assert jax.tree.leaves(pair.pages) == jax.tree.leaves(pages.pages)
  marked = pair.map(lambda _: "slot", lambda _: "page")
  assert jax.tree.leaves(marked) == ["slot"] * 2 + ["page"] * 2
  assert FEED_FORWARD.keeps(D, NUMERICS) == BranchPools()


def test_costs_and_widths_of_a_pair_are_those_of_both():
  pair = ParallelConfig((NET, FEED_FORWARD, ATTENTION))
  counts = [sub.flops(D, NUMERICS) for sub in pair.subs]
  found = pair.flops(D, NUMERICS)
  assert found.token == sum(count.token for count in counts)
  assert found.pair == counts[2].pair == 4 * 2 * 32
  assert pair.product_widths() == {
    "key_heads * key_width of subs[0]": 32,
    "value_heads * value_width of subs[0]": 32,
    "hidden of subs[1]": 128,
    "kv_heads * head_width of subs[2]": 32,
  }


@pytest.mark.parametrize(
  ("subs", "message"),
  [
    ((NET,), "subs holds 1 sublayers; it must hold at least two"),
    ([NET, NET], "subs is .*; it must be a tuple"),
    ((NET, 3), r"subs\[1\] is 3; it must be a sublayer"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_pair_is_refused(subs, message):
  with pytest.raises(ValueError, match=message):
    ParallelConfig(subs)
