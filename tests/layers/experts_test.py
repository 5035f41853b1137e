"""Experts against float64, and the same bits in any company."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.contract import differing_bits
from sparse_prefix_jax.kernels.chunks import Rows
from sparse_prefix_jax.layers import BranchPools, ExpertsConfig, Numerics
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.layers import reference

C, D, N = 16, 48, 4
TABLE = np.zeros((N, 8), np.int32)
run = jax.jit(lambda layer, *inputs: layer(*inputs)[0])
run_for_closeness = jax.jit(lambda layer, *inputs: layer(*inputs)[0])
step = jax.jit(lambda layer, *inputs: layer.step(*inputs)[0])


@functools.cache
def make_layer(dtype="float32", **changes):
  choices = {"experts": 6, "chosen": 2, "hidden": 40} | changes
  layer = ExpertsConfig(**choices).make(
    D, Numerics(dtype=dtype, chunk=C, ladder=(4,)), rngs=nnx.Rngs(0)
  )
  layer.router[...] = layer.router[...] * 3
  if layer.config.score == "sigmoid":
    random = np.random.default_rng(0)
    layer.correction[...] = jnp.float32(
      random.normal(size=layer.correction.shape)
    )
  return layer


def rows_of(size, dtype="float32", seed=0):
  x = np.random.default_rng(seed).normal(size=(size, D))
  return np.asarray(jnp.asarray(x, dtype))


def expected(layer, x):
  """Every expert on every row, in float64; the best are added."""
  c, x = layer.config, reference.wide(x)
  scores = x @ reference.wide(layer.router[...]).T
  share, ranked = shares(layer, scores)
  kept = np.zeros_like(share)
  best = np.argsort(-ranked, -1)[:, : c.chosen]
  np.put_along_axis(kept, best, np.take_along_axis(share, best, -1), -1)
  if c.normalized:
    kept /= kept.sum(-1, keepdims=True)
  x = x if c.latent is None else x @ reference.wide(layer.enter[...]).T
  total = np.zeros_like(x)
  for e in range(c.experts):
    hidden = x @ reference.wide(layer.gate_up[e]).T
    if c.gated:
      gate, up = np.split(hidden, 2, -1)
      hidden = reference.activation(c.activation, gate) * up
    else:
      hidden = reference.activation(c.activation, hidden)
    total += (
      kept[:, e, None] * c.factor * (hidden @ reference.wide(layer.down[e]).T)
    )
  return (
    total if c.latent is None else total @ reference.wide(layer.leave[...]).T
  )


def shares(layer, scores):
  """What experts weigh, and what they are chosen by."""
  c = layer.config
  if c.score == "softmax":
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return share, share
  share = reference.sigmoid(scores)
  ranked = share + reference.wide(layer.correction[...])
  parts = ranked.reshape(len(ranked), c.groups, -1)
  totals = np.sort(parts, -1)[..., -2:].sum(-1)
  for row, total in zip(parts, totals, strict=True):
    row[np.argsort(-total)[c.chosen_groups :]] = -np.inf
  return share, parts.reshape(ranked.shape)


def in_chunks(layer, xs, run=run):
  jobs = [Job(x.shape[0]) for x in xs]
  packed = pack(jobs, xs, N, C, padding=0)
  chunks = chunks_of(jobs, N, C)
  y = np.asarray(run(layer, packed, BranchPools(), chunks, TABLE))
  return y, unpack(jobs, y, C)


@pytest.mark.usefixtures("little_optimisation")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"normalized": False},
    {"experts": 1, "chosen": 1},
    {"experts": 33, "chosen": 5, "block": 64},
    {"experts": 3, "chosen": 3, "hidden": 8, "block": 2},
    {"score": "sigmoid", "gated": False, "activation": "relu_squared"},
    {"score": "sigmoid", "groups": 3, "chosen_groups": 2, "latent": 24}
    | {"factor": 2.5, "normalized": False},
  ],
)
def test_equals_the_formula(dtype, changes):
  layer = make_layer(dtype, **changes)
  xs = [rows_of(20, dtype), rows_of(7, dtype, seed=1)]
  _, outs = in_chunks(layer, xs, run_for_closeness)
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  for x, got in zip(xs, outs, strict=True):
    assert got.dtype == x.dtype
    assert reference.distance(got, expected(layer, x)) <= tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_has_the_same_bits_in_any_company(dtype):
  layer, x = make_layer(dtype), rows_of(16, dtype)
  _, (alone,) = in_chunks(layer, [x])
  others = [rows_of(16, dtype, seed) for seed in (1, 2)]
  _, (first, among, _) = in_chunks(layer, [others[0], x, others[1]])
  assert differing_bits(alone, among) == 0
  # All of one expert, so that blocks fill up before it.
  crowd = [np.repeat(x[:1], 16, axis=0), x, others[0]]
  _, (_, crowded, _) = in_chunks(layer, crowd)
  assert differing_bits(alone, crowded) == 0
  assert differing_bits(alone, first) > 0
  # What follows in the chunk changes nothing either.
  _, (shorter,) = in_chunks(layer, [x[:5]])
  assert differing_bits(alone[:5], shorter) == 0


def test_padding_is_never_routed():
  layer, x = make_layer(), rows_of(5)
  packed = pack([Job(5)], [x], N, C, padding=np.nan)
  chunks = chunks_of([Job(5)], N, C)
  y = np.asarray(run(layer, packed, BranchPools(), chunks, TABLE))
  _, (clean,) = in_chunks(layer, [x])
  assert differing_bits(y.reshape(-1, D)[:5], clean) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_does_not_see_its_row_or_other_rows(dtype):
  layer, x = make_layer(dtype), rows_of(4, dtype)

  def stepped(x, active):
    zeros = jnp.zeros(4, jnp.int32)
    rows = Rows(zeros, zeros, zeros, jnp.asarray(active))
    return step(layer, jnp.asarray(x), BranchPools(), rows, TABLE)

  every = np.asarray(stepped(x, [True] * 4))
  assert reference.distance(every, expected(layer, x)) <= 2e-2
  for shift in (1, 2, 3):
    moved = stepped(np.roll(x, shift, axis=0), [True] * 4)
    assert differing_bits(np.roll(moved, -shift, axis=0), every) == 0
  free = x.copy()
  free[[0, 2]] = np.nan
  some = np.asarray(stepped(free, [False, True, False, True]))
  assert differing_bits(some[[1, 3]], every[[1, 3]]) == 0


@pytest.mark.parametrize(
  ("experts", "chosen", "rows"),
  [(8, 2, 64), (16, 2, 64), (256, 8, 32), (512, 10, 16), (4096, 1, 16)],
)
def test_blocks_are_what_an_expert_gets(experts, chosen, rows):
  choices = {"experts": experts, "chosen": chosen, "hidden": 8}
  assert ExpertsConfig(**choices).rows == rows
  assert ExpertsConfig(**choices, block=48).rows == 48


def test_a_step_multiplies_no_more_rows_than_it_has():
  layer, zeros = make_layer(), jnp.zeros(4, jnp.int32)
  assert layer.config.rows > layer.numerics.decode_rows == 4
  rows = Rows(zeros, zeros, zeros, jnp.ones(4, bool))
  inputs = jnp.asarray(rows_of(4)), BranchPools(), rows, TABLE
  text = step.lower(layer, *inputs).as_text()
  found = re.findall(r"dot_general.*-> tensor<(\d+)x", text)
  # The router, the gate with its product, and what leads back.
  assert found == ["4"] * 3


@pytest.mark.usefixtures("little_optimisation")
def test_gradients_reach_router_and_experts():
  layer, jobs = make_layer(), [Job(20)]
  packed = pack(jobs, [rows_of(20)], N, C, padding=0)
  chunks = chunks_of(jobs, N, C)

  def loss(layer):
    y = layer(packed, BranchPools(), chunks, jnp.asarray(TABLE))[0]
    return jnp.sum(jnp.square(y))

  gradients = jax.device_get(jax.jit(jax.grad(loss))(layer))
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"chosen": 7}, "chosen is 7; it must be at most experts = 6"),
    ({"experts": 0}, "experts is 0; it must be at least 1"),
    ({"block": 1}, "block is 1; it must be an int from 2"),
    ({"score": "max"}, "score is 'max'; it must be one of softmax, sigmoid"),
    ({"groups": 2}, "groups is 2; with score = 'softmax' .* must be 1"),
    ({"groups": 4}, "experts is 6; it must be a multiple of groups = 4"),
    ({"score": "sigmoid", "groups": 3, "chosen": 3}, "3; .* 6 in 1 groups"),
    ({"chosen_groups": 2}, "chosen_groups is 2; .* at most groups = 1"),
    ({"latent": 0}, "latent is 0; it must be an int above 0 or None"),
  ],
)
def test_what_cannot_work_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    ExpertsConfig(**({"experts": 6, "chosen": 2, "hidden": 8} | changes))
