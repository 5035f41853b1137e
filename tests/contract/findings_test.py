"""check finds the layer that breaks a rule, by the rule that it breaks."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, ModelConfig
from sparse_prefix_jax.contract import check
from sparse_prefix_jax.contract.findings import (
  CAUSAL,
  FREE,
  LEFT,
  NUMBERS,
  PADDING,
  READS,
  ROWS,
  STEPS,
)
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, map_chunks
from sparse_prefix_jax.layers import (
  Branch,
  BranchPools,
  ExpertsConfig,
  Flops,
  Numerics,
  SwiGLUConfig,
)
from sparse_prefix_jax.layers.expert_blocks import sort_into_blocks
from sparse_prefix_jax.layers.experts import Experts
from tests.toy_layer import LeakySum, LeakySumConfig

NUMERICS = Numerics(ladder=(1, 4), max_length=512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LooseRouterConfig(ExpertsConfig):
  """Experts whose router runs on all rows of a program at once."""

  kind: ClassVar[str] = "loose_router"

  def make(self, width, numerics, *, rngs):
    return LooseRouter(self, width, numerics, rngs=rngs)


class LooseRouter(Experts):
  """Scores and softmax are computed outside of the chunks."""

  def __call__(self, x, pools, chunks, page_table):
    n, c, width = x.shape
    routing = self._choose(x.reshape(n * c, width))
    real = jnp.arange(c)[None] < chunks.length[:, None]
    blocks = sort_into_blocks(
      routing.expert,
      real.reshape(-1),
      experts=self.config.experts,
      block=self.config.rows,
    )
    outs = self._outputs(x.reshape(n * c, width), blocks)
    weighted = jnp.sum(routing.weight[..., None] * outs, axis=1)
    return weighted.reshape(x.shape), pools


@dataclasses.dataclass(frozen=True)
class BrokenConfig:
  """A layer that breaks one rule."""

  kind: ClassVar[str] = "broken"

  rule: str
  dtype: str = "float32"

  def make(self, width, numerics, *, rngs):
    return Broken(self.rule)

  def keeps(self, width, numerics):
    return BranchPools(slots=jax.ShapeDtypeStruct((4,), self.dtype))

  def flops(self, width, numerics):
    return Flops(token=width)

  def product_widths(self):
    return {}


def add_all_real(x, length):
  """Padding is selected away; the tokens behind are not."""
  real = jnp.arange(x.shape[0])[:, None] < length
  return x + jnp.sum(
    jnp.where(real, x, jnp.zeros_like(x)), axis=0, keepdims=True
  )


class Broken(nnx.Module):
  def __init__(self, rule):
    self.rule = rule

  def __call__(self, x, pools, chunks, page_table):
    if self.rule == PADDING:
      x = map_chunks(lambda one: one + jnp.mean(one), x)
    if self.rule == CAUSAL:
      x = map_chunks(add_all_real, x, chunks.length)
    if self.rule == "slots":
      x = x + chunks.write[:, None, None].astype(x.dtype)
    if self.rule == "rows of the table":
      x = x + chunks.request[:, None, None].astype(x.dtype)
    if self.rule == "how many":
      x = x * pools.slots.shape[0]
    if self.rule == "form":
      return x, pools.slots
    if self.rule == "pages":
      first = page_table[chunks.request, 0]
      x = x + first[:, None, None].astype(x.dtype)
    slots = pools.slots
    one = jnp.ones((), slots.dtype)
    slots = slots.at[jnp.where(chunks.write < 0, 99, chunks.write)].set(
      one, mode="drop"
    )
    if self.rule == FREE:
      slots = slots.at[0].set(one)
    if self.rule == "last":
      slots = slots.at[jnp.where(chunks.length > 0, 99, -1)].set(one)
    return x, pools._replace(slots=slots)

  def step(self, x, pools, rows, page_table):
    slots, wrote = pools.slots, jnp.where(rows.active, rows.write, 99)
    if self.rule == "step slots":
      x = x + rows.write[:, None].astype(x.dtype)
    if self.rule == "neighbours":
      x = x + jnp.sum(jnp.where(rows.active[:, None], x, 0))
    if self.rule == "rows":
      x = x + jnp.arange(x.shape[0])[:, None].astype(x.dtype)
    if self.rule == "reads":
      two = jnp.full((), 2, jnp.int32).astype(slots.dtype)
      slots = slots.at[rows.read].set(two, mode="drop")
    if self.rule == "positions":
      wrote = jnp.where(rows.active, rows.position % slots.shape[0], 99)
    value = rows.position
    if self.rule == "places":
      value = jnp.arange(x.shape[0], dtype=jnp.int32)
    value = value[:, None].astype(slots.dtype)
    if self.rule != "left":
      slots = slots.at[wrote].set(value, mode="drop")
    return x, pools._replace(slots=slots)


def model(sub):
  """The layer behind one that keeps every rule."""
  config = ModelConfig(
    vocab_size=64,
    width=64,
    branches=(Branch(SwiGLUConfig(hidden=64)), Branch(sub)),
    numerics=NUMERICS,
  )
  return HybridDecoder(config, rngs=nnx.Rngs(0))


def test_a_router_outside_of_the_chunks_is_found():
  sub = LooseRouterConfig(experts=48, chosen=2, hidden=64)
  (found,) = check(model(sub))
  assert found[:3] == (1, "loose_router", ROWS)
  assert found.bits > 100


@pytest.mark.parametrize("rule", [PADDING, CAUSAL, FREE])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_the_rule_that_is_broken_is_named(rule, dtype):
  (found,) = check(model(BrokenConfig(rule, dtype)))
  assert found[:3] == (1, "broken", rule)
  assert found.bits > 0


@pytest.mark.parametrize(
  ("broken", "rules"),
  [
    ("neighbours", [STEPS]),
    ("rows", [STEPS]),
    ("places", [STEPS]),
    ("reads", [FREE]),
    ("positions", [FREE]),
    ("left", [LEFT]),
    ("last", [FREE]),
  ],
)
def test_layers_that_write_what_is_not_theirs_are_found(broken, rules):
  found = check(model(BrokenConfig(broken)))
  assert [(one.branch, one.rule) for one in found] == [(1, r) for r in rules]


@pytest.mark.parametrize(
  "broken",
  ["slots", "pages", "step slots", "rows of the table", "how many"],
)
def test_bits_that_depend_on_numbers_are_found(broken):
  (found,) = check(model(BrokenConfig(broken)), lives=0)
  assert found[:3] == (1, "broken", NUMBERS)
  assert found.bits > 0


@dataclasses.dataclass(frozen=True)
class ForgetfulConfig(LeakySumConfig):
  """Sums that go on only from what was captured."""

  kind: ClassVar[str] = "forgetful"

  def make(self, width, numerics, *, rngs):
    return Forgetful(self, width, numerics, rngs=rngs)


class Forgetful(LeakySum):
  def __call__(self, x, pools, chunks, page_table):
    lost = jnp.roll(chunks.write == NONE, 1) & (chunks.read == CARRY)
    chunks = chunks._replace(read=jnp.where(lost, ZERO, chunks.read))
    return super().__call__(x, pools, chunks, page_table)


def test_a_layer_that_forgets_what_is_not_captured_is_found():
  (found,) = check(model(ForgetfulConfig(channels=64)), lives=0)
  assert found[:3] == (1, "forgetful", READS)


def test_pools_of_another_form_are_refused():
  with pytest.raises(ValueError, match=r"^broken returns .* keep their form"):
    check(model(BrokenConfig("form")))


@pytest.mark.parametrize("dtype", ["float32", "int32", "int8", "bool"])
def test_what_a_slot_holds_may_be_whole(dtype):
  assert check(model(BrokenConfig("none", dtype)), lives=1) == ()


@pytest.mark.parametrize("wrong", [{"lives": -1}, {"lives": 1.5}, {"seed": -1}])
def test_numbers_that_are_none_are_refused(wrong, unchecked_types):
  ((name, value),) = wrong.items()
  with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}$"):
    check(model(BrokenConfig("none")), **wrong)


def test_layers_that_keep_the_rules_are_not_found():
  subs = (
    LeakySumConfig(channels=64),
    ExpertsConfig(experts=48, chosen=2, hidden=64),
  )
  for sub in subs:
    assert check(model(sub), lives=0) == ()
