"""Gradients through explicit carries: those of the formula in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.layers import ExplicitCarry, explicit
from sparse_prefix_jax.models.decoder import Branches
from tests.layers import reference
from tests.models import float64_hybrid
from tests.models_for_tests import small_config, small_model
from tests.trees import assert_same_bits

C, T, START, CAPACITY = 16, 80, 16, 112
LENGTHS, CAPTURES = (80, 37), (64, 16)
TOLERANCE = 1e-4


def parts():
  """Branches, a carry that was resumed, and inputs of two requests."""
  branches = Branches(tuple(small_model().branches))
  carry = small_model().initialize_carry(2, CAPACITY)
  leaves, structure = jax.tree.flatten((carry.slots, carry.pages))
  keys = jax.random.split(jax.random.key(1), len(leaves) + 1)
  drawn = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  slots, pages = jax.tree.unflatten(structure, drawn)
  carry = ExplicitCarry(jnp.full(2, START), slots, pages)
  return branches, carry, jax.random.normal(keys[-1], (2, T, 64))


def weights_like(tree):
  """Random cotangents, of unit size for every array."""
  rng = np.random.default_rng(5)
  return jax.tree.map(
    lambda x: rng.standard_normal(x.shape) / np.sqrt(x.size), tree
  )


def scanned(branches, slots, pages, x, lengths=LENGTHS, captures=CAPTURES):
  """All that a gradient may flow through."""
  carry = ExplicitCarry(jnp.full(2, START), slots, pages)
  out = explicit.scan(
    branches, small_config().numerics, carry, x, list(lengths), captures
  )
  return out.y, out.carry.slots, out.carry.pages, out.captured


def formula(branches, slots, pages, x):
  """The same from the formula; what no token reaches stays as it was."""
  results = []
  for b, length in enumerate(LENGTHS):
    slot, page = jax.tree.map(lambda leaf, b=b: leaf[b], (slots, pages))
    flat = jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), page)
    y, kept = float64_hybrid.run(
      branches.branches, x[b, :length], slot, flat, START
    )
    y = jnp.zeros_like(x[b]).at[:length].set(y)
    states = kept[0]
    final = [leaf[length] for leaf in states]
    at = [
      [s[a] if a <= length else jnp.zeros_like(s[0]) for a in CAPTURES]
      for s in states
    ]
    written = [
      held.at[START : START + length].set(new[START:])
      for held, new in zip(flat[2], kept[2])
    ]
    results.append((y, final, written, [jnp.stack(s) for s in at]))
  y, final, written, captured = jax.tree.map(
    lambda *xs: jnp.stack(xs), *results
  )
  captured = [s.swapaxes(0, 1) for s in captured]
  return y, final, written, captured


@functools.cache
def cotangents():
  """Weights of all results; none for padding of pages, which is unspecified."""
  branches, carry, x = parts()
  out = jax.eval_shape(scanned, branches, carry.slots, carry.pages, x)
  y, slots, pages, captured = weights_like(out)
  for page in jax.tree.leaves(pages):
    flat = page.reshape(2, CAPACITY, *page.shape[3:])
    for b, length in enumerate(LENGTHS):
      flat[b, START + length :] = 0
  return y, slots, pages, captured


def weighed(out, weights):
  leaves = jax.tree.leaves(out), jax.tree.leaves(weights)
  return sum(
    jnp.sum(x * w.reshape(x.shape)) for x, w in zip(*leaves, strict=True)
  )


def loss(*arguments):
  out = scanned(*arguments)
  return weighed(out, jax.tree.map(jnp.float32, cotangents()))


@functools.cache
def gradients():
  branches, carry, x = parts()
  run = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
  return run(branches, carry.slots, carry.pages, x)


def test_gradients_equal_those_of_the_formula():
  branches, carry, x = parts()
  weights = cotangents()
  wide = jax.tree.map(reference.wide, (branches, carry.slots, carry.pages, x))
  with (
    jax.enable_x64(True),
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    wide = jax.tree.map(jnp.asarray, wide)
    value, expected = jax.jit(
      jax.value_and_grad(
        lambda *arguments: weighed(formula(*arguments), weights),
        argnums=(0, 1, 2, 3),
      ),
      # It is run once.
      compiler_options={"xla_backend_optimization_level": 0},
    )(*wide)
    value, expected = jax.tree.map(np.asarray, (value, expected))
  found = loss(branches, carry.slots, carry.pages, x)
  assert abs(found - value) <= 1e-4 * abs(value)
  named = jax.tree_util.tree_leaves_with_path(expected)
  assert len(named) > 20
  for (path, want), got in zip(
    named, jax.tree.leaves(gradients()), strict=True
  ):
    got = np.asarray(got).reshape(want.shape)
    assert np.isfinite(got).all(), path
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error <= TOLERANCE, (path, error)


def test_padding_and_later_pages_have_no_gradient():
  _, _, d_pages, d_x = gradients()
  for b, length in enumerate(LENGTHS):
    assert not np.asarray(d_x)[b, length:].any()
    assert np.asarray(d_x)[b, :length].any(axis=1).all()
  for leaf in jax.tree.leaves(d_pages):
    flat = np.asarray(leaf).reshape(2, CAPACITY, -1)
    assert flat[:, :START].any(axis=2).all()
    # What was written over, or never seen, cannot matter.
    assert not flat[0, START:].any()


def one_by_one(slots, pages, x, length):
  """`scanned` of one request, for `vmap`, without the axis of requests."""
  carry = ExplicitCarry(
    jnp.full(1, START), *jax.tree.map(lambda leaf: leaf[None], (slots, pages))
  )
  branches, numerics = parts()[0], small_config().numerics
  out = explicit.scan(
    branches, numerics, carry, x[None], length[None], CAPTURES
  )
  whole = out.y, out.carry.slots, out.carry.pages
  captured = jax.tree.map(lambda leaf: leaf[:, 0], out.captured)
  return *jax.tree.map(lambda leaf: leaf[0], whole), captured


@pytest.mark.slow
def test_mapped_requests_have_gradients_of_the_same_bits():
  weights = jax.tree.map(jnp.float32, cotangents())

  def mapped(slots, pages, x):
    y, slots, pages, captured = jax.vmap(one_by_one)(
      slots, pages, x, jnp.array(LENGTHS)
    )
    captured = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), captured)
    return weighed((y, slots, pages, captured), weights)

  _, carry, x = parts()
  run = jax.jit(jax.grad(mapped, argnums=(0, 1, 2)))
  assert_same_bits(run(carry.slots, carry.pages, x), gradients()[1:])


# Tests of the operations recompute theirs.
@pytest.mark.slow
def test_recomputed_gradients_have_the_same_bits():
  branches, carry, x = parts()
  run = jax.jit(jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2, 3)))
  assert_same_bits(run(branches, carry.slots, carry.pages, x), gradients())


@pytest.mark.slow
def test_a_longer_document_keeps_no_pages_per_group():
  """Beside inputs and outputs, a group costs one state."""
  model = small_model(ladder=(4,), max_length=2048)
  branches, numerics = Branches(tuple(model.branches)), model.config.numerics
  carry = model.initialize_carry(1)

  def total(branches, x):
    return jnp.sum(explicit.scan(branches, numerics, carry, x).y)

  def temporaries(groups):
    x = jax.ShapeDtypeStruct((1, groups * 4 * C, 64), jnp.float32)
    run = jax.jit(jax.grad(total)).lower(branches, x)
    return run.compile().memory_analysis().temp_size_in_bytes

  a_group = (temporaries(12) - temporaries(4)) / 8
  activations, state = 4 * C * 64 * 4, 4 * (4 * 32 * 32 + 3 * 256)
  pages = sum(leaf.nbytes for leaf in jax.tree.leaves(carry.pages))
  assert a_group <= 8 * activations + 2 * state < pages / 4


def test_a_second_derivative_is_refused_in_one_sentence():
  """JAX told of linearizations, or of a loop over nothing."""
  model = small_model()
  carry, tokens = model.initialize_carry(1, CAPACITY), jnp.ones((1, C), int)

  def scanned(slots):
    return (model.scan(carry._replace(slots=slots), tokens).y ** 2).sum()

  def stepped(slots):
    _, y = model.cell(carry._replace(slots=slots), tokens[:, 0])
    return (y**2).sum()

  def again(slots):
    return sum(x.sum() for x in jax.tree.leaves(jax.grad(scanned)(slots)))

  refused = pytest.raises(ValueError, match="differentiate once, in reverse")
  with refused:
    jax.eval_shape(jax.grad(again), carry.slots)
  with refused:
    jax.eval_shape(jax.hessian(stepped), carry.slots)
