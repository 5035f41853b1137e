"""A branch is keep * r + scale * post(sub(pre(x))), in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers import Branch, Norm, Numerics, SwiGLUConfig
from tests.layers import reference
from tests.toy_layer import LeakySumConfig

D, SUB = 64, SwiGLUConfig(hidden=128)
CENTRED, PLAIN = Norm(eps=1e-5), Norm(centred=False)
BRANCHES = [
  Branch(SUB, pre=CENTRED),  # Qwen3.5
  Branch(SUB, pre=PLAIN, scale=0.22),  # Granite
  Branch(SUB, pre=PLAIN, keep=3.5, scale=0.5, residual="normed"),  # MiniMax
  Branch(SUB, pre=None, post=PLAIN),  # OLMo
  Branch(SUB, pre=CENTRED, post=CENTRED),  # LFM3
]


def expected_norm(x, weight, norm):
  if norm is None:
    return x
  factor = reference.wide(weight[...]) + (1 if norm.centred else 0)
  return reference.rms(x, norm.eps) * factor


def expected_branch(module, x):
  """The formula, with SwiGLU as the sublayer."""
  c, sub = module.config, module.sub
  normed = expected_norm(x, module.pre, c.pre)
  gate, up, down = (
    reference.wide(w[...]).T for w in (sub.gate, sub.up, sub.down)
  )
  out = (reference.silu(normed @ gate) * (normed @ up)) @ down
  out = expected_norm(out, module.post, c.post)
  r = normed if c.residual == "normed" else x
  return c.keep * r + c.scale * out


def make(branch, dtype):
  """A branch whose norms change something."""
  module = branch.make(D, Numerics(dtype=dtype), rngs=nnx.Rngs(0))
  for i, weight in enumerate((module.pre, module.post)):
    if weight is not None:
      noise = jax.random.normal(jax.random.key(i), (D,)) / 4
      weight[...] = weight[...] + noise.astype(dtype)
  return module


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_formula(branch, dtype):
  module = make(branch, dtype)
  x = jax.random.normal(jax.random.key(0), (2, 16, D)).astype(dtype)
  pools = SUB.keeps(D, Numerics()).zeros(slots=1, pages=1)
  chunks = Chunks(*jnp.zeros((5, 2), jnp.int32))
  table = jnp.zeros((2, 8), jnp.int32)
  run = jax.jit(lambda module, *inputs: module(*inputs))
  y, after = run(module, x, pools, chunks, table)
  assert y.dtype == jnp.dtype(dtype)
  assert after == pools
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  expected = expected_branch(module, reference.wide(x))
  assert reference.distance(y, expected) <= tolerance
  # A step runs the same rows, whatever else a chunk is.
  rows = Rows(*jnp.zeros((3, 32), jnp.int32), active=jnp.ones(32, bool))
  table = jnp.zeros((32, 8), jnp.int32)
  step = jax.jit(lambda module, *inputs: module.step(*inputs))
  stepped, _ = step(module, x.reshape(32, D), pools, rows, table)
  assert reference.distance(stepped.reshape(y.shape), expected) <= tolerance


def test_a_norm_that_is_not_there_has_no_weight():
  module = make(BRANCHES[3], "float32")
  assert module.pre is None
  np.testing.assert_array_equal(PLAIN.weight(2, "float32")[...], np.ones(2))
  np.testing.assert_array_equal(CENTRED.weight(2, "float32")[...], np.zeros(2))


@dataclasses.dataclass(frozen=True)
class Careless(LeakySumConfig):
  """A layer whose module does not return what it was given."""

  fault: str = "output"

  def make(self, width, numerics, *, rngs):
    return CarelessModule(self.fault)


class CarelessModule(nnx.Module):
  def __init__(self, fault):
    self.fault = fault

  def step(self, x, pools, rows, page_table):
    if self.fault == "output":
      return x.astype(jnp.float32), pools
    if self.fault == "structure":
      return x, pools._replace(slots=(pools.slots,))
    return x, pools._replace(slots=pools.slots.astype(jnp.bfloat16))

  def __call__(self, x, pools, chunks, page_table):
    return self.step(x, pools, None, page_table)


@pytest.mark.parametrize("fault", ["output", "structure", "pools"])
@pytest.mark.parametrize("step", [False, True])
def test_a_sublayer_that_changes_a_form_is_refused(fault, step):
  sub = Careless(channels=8, fault=fault)
  numerics = Numerics(dtype="bfloat16")
  module = Branch(sub).make(D, numerics, rngs=nnx.Rngs(0))
  pools = sub.keeps(D, numerics).zeros(slots=2, pages=1)
  chunks = Chunks(*jnp.zeros((5, 2), jnp.int32))
  rows = Rows(*jnp.zeros((3, 2), jnp.int32), active=jnp.ones(2, bool))
  x, table = jnp.ones((2, D), jnp.bfloat16), jnp.zeros((2, 8), jnp.int32)
  with pytest.raises(ValueError, match=r"leaky_sum returns .* keep their form"):
    if step:
      module.step(x, pools, rows, table)
    else:
      module(x[:, None], pools, chunks, table)


class Unhashable(SwiGLUConfig):
  """A sublayer with a field that has no hash."""

  __hash__ = None


@pytest.mark.parametrize(
  ("choices", "message"),
  [
    ({"sub": "mlp"}, "sub is 'mlp'; it must be a sublayer, with kind, make"),
    ({"sub": SwiGLUConfig}, "sub is <class .*; it must be a sublayer"),
    ({"sub": Unhashable(hidden=64)}, "which has no hash .* frozen dataclass"),
    ({"pre": 1e-6}, "pre is 1e-06; it must be a Norm or None"),
    ({"post": "rms"}, "post is 'rms'; it must be a Norm or None"),
    ({"keep": 0.0}, "keep is 0.0; it must be a finite number above 0"),
    ({"scale": float("inf")}, "scale is inf; it must be a finite number"),
    ({"residual": "x"}, "residual is 'x'; it must be one of input, normed"),
    ({"residual": "normed", "pre": None}, "'normed' and pre is None; .*norm"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_branch_is_refused_in_one_sentence(choices, message):
  with pytest.raises(ValueError, match=message) as refused:
    Branch(**({"sub": SUB} | choices))
  assert str(refused.value).endswith(".")
  assert "\n" not in str(refused.value)
