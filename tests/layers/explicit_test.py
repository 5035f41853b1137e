"""Explicit carries of one layer: the packed bits, mapped, refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.kernels.chunks import Rows
from sparse_prefix_jax.layers import (
  AttentionConfig,
  BranchPools,
  ExplicitCarry,
  GatedDeltaNetConfig,
  KimiDeltaAttentionConfig,
  LatentAttentionConfig,
  LightningConfig,
  MambaConfig,
  Numerics,
  ParallelConfig,
  RGLRUConfig,
  ShortConvConfig,
  SwiGLUConfig,
  explicit_programs,
  scan_with_capture,
)
from sparse_prefix_jax.layers.numerics import chunks_per_group
from tests.kernels.packing import Job, chunks_of, pack, unpack
from tests.toy_layer import LeakySumConfig
from tests.trees import assert_same_bits

C, D, T, LENGTHS = 64, 64, 150, (150, 70)
NUMERICS = Numerics(ladder=(1, 2, 4), max_length=512)
ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_width=32, rotary_width=16)
# Two heads of 64: what changes its bits when requests stand side by side.
NARROW = GatedDeltaNetConfig(
  key_heads=2, value_heads=2, key_width=64, value_width=64
)
LAYERS = {
  "gated_delta_net": NARROW,
  "attention": ATTENTION,
  "swiglu": SwiGLUConfig(hidden=128),
  "parallel": ParallelConfig((NARROW, ATTENTION)),
  "leaky_sum": LeakySumConfig(channels=64),
  "mamba": MambaConfig(inner_width=64, state_width=8, rank=4),
  "rg_lru": RGLRUConfig(channels=64, heads=4),
  "short_conv": ShortConvConfig(channels=64),
  "lightning": LightningConfig(heads=2, head_width=32),
  "kimi_delta_attention": KimiDeltaAttentionConfig(heads=2, head_width=32),
  "latent_attention": LatentAttentionConfig(
    heads=4, latent_width=48, key_width=32, shared_width=16, value_width=32
  ),
}

scan = jax.jit(lambda layer, *arguments: layer.scan(*arguments))
cell = jax.jit(lambda layer, *arguments: layer.cell(*arguments))
packed = jax.jit(lambda layer, *inputs: layer(*inputs))


@functools.cache
def make_layer(name):
  return LAYERS[name].make(D, NUMERICS, rngs=nnx.Rngs(0))


@functools.cache
def inputs():
  random = np.random.default_rng(0)
  return jnp.asarray(random.standard_normal((2, T, D), np.float32))


def empty(name, batch=2, capacity=256):
  return make_layer(name).initialize_carry((batch, D), capacity=capacity)


def scanned(name, carry, lengths=LENGTHS, x=None):
  """A scan of the inputs: one program of each layer for all tests."""
  at, x = jnp.array([64, 128]), inputs() if x is None else x
  return scan(make_layer(name), carry, x, jnp.array(lengths), at)


# The first two are in "parallel", the others keep what another keeps.
ALIKE = "gated_delta_net", "attention", "mamba", "short_conv", "lightning"
ALIKE += ("kimi_delta_attention",)
ALONE = [
  pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name
  for name in LAYERS
]


@pytest.mark.parametrize("name", ALONE)
def test_a_scan_has_the_bits_of_the_packed_form(name):
  layer, x = make_layer(name), np.asarray(inputs())
  out = jax.device_get(scanned(name, empty(name)))
  jobs = Job(150, writes={0: 2, 1: 3, 2: 0}), Job(70, writes={0: 4, 1: 1})
  pools = LAYERS[name].keeps(D, NUMERICS).zeros(slots=5, pages=8)
  table = np.zeros((2, 8), np.int32)
  table[0, :4], table[1, :4] = [0, 1, 2, 3], [4, 5, 6, 7]
  xs = [x[b, :length] for b, length in enumerate(LENGTHS)]
  y, after = jax.device_get(
    packed(
      layer,
      pack(jobs, xs, 5, C, padding=0),
      pools,
      chunks_of(jobs, 5, C),
      table,
    )
  )
  for b, expected in enumerate(unpack(jobs, y, C)):
    assert_same_bits(out.y[b, : LENGTHS[b]], expected)
    assert not out.y[b, LENGTHS[b] :].any()
  slots = jax.tree.map(lambda leaf: leaf[:2], after.slots)
  assert_same_bits(out.carry.slots, slots)
  first, second = (
    jax.tree.map(lambda leaf, at=at: leaf[at], after.slots)
    for at in (np.array([2, 4]), np.array([3, 3]))
  )
  at = jax.tree.map(lambda leaf: leaf[0], out.captured)
  assert_same_bits(at, first)
  at = jax.tree.map(lambda leaf: leaf[1], out.captured)
  for leaf, want in zip(jax.tree.leaves(at), jax.tree.leaves(second)):
    assert_same_bits(leaf[0], want[0])
    assert not leaf[1].any()  # the second request ends before
  for leaf, want in zip(
    jax.tree.leaves(out.carry.pages), jax.tree.leaves(after.pages)
  ):
    flat = want.reshape(2, -1, *want.shape[2:])
    ours = leaf.reshape(flat.shape)
    for b, length in enumerate(LENGTHS):
      assert_same_bits(ours[b, :length], flat[b, :length])
  assert out.carry.position.tolist() == list(LENGTHS)


@pytest.mark.parametrize("name", ALONE)
def test_a_cell_has_the_bits_of_a_step(name):
  layer, x = make_layer(name), np.asarray(inputs())
  carry = jax.device_get(scanned(name, empty(name)).carry)
  flat = jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), carry.pages)
  index, active = np.array([0, 1, -1, -1]), np.array([True, True, False, False])
  rows = Rows(
    read=jnp.array(index),
    write=jnp.array(np.where(active, index, -3)),
    position=jnp.array([150, 70, 0, 0]),
    active=jnp.array(active),
  )
  table = np.zeros((4, 8), np.int32)
  table[0, :4], table[1, :4] = [0, 1, 2, 3], [4, 5, 6, 7]
  token = x[:, 0]
  y, after = jax.jit(lambda layer, *given: layer.step(*given))(
    layer,
    np.concatenate([token, np.zeros_like(token)]),
    BranchPools(carry.slots, flat),
    rows,
    table,
  )
  advanced, out = jax.device_get(cell(layer, carry, token))
  assert_same_bits(out, y[:2])
  assert_same_bits(advanced.slots, after.slots)
  pages = jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), advanced.pages)
  assert_same_bits(pages, after.pages)
  assert advanced.position.tolist() == [151, 71]


# What has slots and pages holds what has one of them.
ONE_OF_THEM = "gated_delta_net", "kimi_delta_attention", "latent_attention"
TRANSFORMED = [
  *(pytest.param(name, marks=pytest.mark.slow) for name in ONE_OF_THEM),
  "parallel",
]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_every_transformation_gives_the_same_bits(name):
  layer, x = make_layer(name), inputs()
  carry = empty(name)
  expected = scanned(name, carry, (T, T))._replace(captured=None)
  eager = layer.scan(carry, x)
  assert_same_bits(eager._replace(captured=None), expected)

  def one(carry, x):
    alone = jax.tree.map(lambda leaf: leaf[None], carry)
    out = layer.scan(alone, x[None])
    return jax.tree.map(lambda leaf: leaf[0], (out.carry, out.y))

  assert_same_bits(jax.jit(jax.vmap(one))(carry, x), expected[:2])
  kept = jax.checkpoint(lambda carry, x: layer.scan(carry, x))
  checkpointed = jax.jit(kept)(carry, x)
  assert_same_bits(checkpointed._replace(captured=None), expected)
  parts = x[:, :128].reshape(2, 2, C, D).swapaxes(0, 1)

  def body(carry, x):
    out = layer.scan(carry, x)
    return out.carry, out.y

  after, y = jax.jit(lambda c, xs: jax.lax.scan(body, c, xs))(carry, parts)
  y = np.asarray(y).swapaxes(0, 1).reshape(2, 128, D)
  assert_same_bits(y, np.asarray(expected.y)[:, :128])
  rest = np.pad(np.asarray(x)[:, 128:], ((0, 0), (0, 128), (0, 0)))
  last = scanned(name, after, (T - 128, T - 128), rest)
  assert_same_bits(last.carry, expected.carry)


def test_a_layer_that_is_closed_over_has_the_same_bits():
  """Its weights are constants then, which XLA must not compute with."""
  random, layer = np.random.default_rng(0), make_layer("rg_lru")
  layer = jax.tree.map(lambda x: x + 0.1 * random.random(x.shape, "f4"), layer)
  carry, x = empty("rg_lru", batch=1), inputs()[:1, :64]
  closed = jax.jit(lambda *given: layer.scan(*given))(carry, x)
  assert_same_bits(closed, scan(layer, carry, x))
  closed = jax.jit(lambda *given: layer.cell(*given))(carry, x[:, 0])
  assert_same_bits(closed, cell(layer, carry, x[:, 0]))


@pytest.mark.parametrize("name", TRANSFORMED)
def test_cells_are_mapped_scanned_and_captured_with_the_same_bits(name):
  layer, x = make_layer(name), np.asarray(inputs()).swapaxes(0, 1)[:6]
  carry, ys, states = empty(name), [], []
  for token in x:
    carry, y = jax.device_get(cell(layer, carry, token))
    ys.append(y)
    states.append(carry)
  out = jax.jit(
    lambda carry, xs: scan_with_capture(layer.cell, carry, xs, (5, 2))
  )(empty(name), x)
  assert_same_bits((out.carry, out.ys), (carry, np.stack(ys)))
  chosen = jax.tree.map(lambda a, b: np.stack([a, b]), states[4], states[1])
  assert_same_bits(out.captured, chosen)

  def one(carry, x):
    alone = jax.tree.map(lambda leaf: leaf[None], carry)
    return jax.tree.map(lambda leaf: leaf[0], layer.cell(alone, x[None]))

  mapped = jax.jit(jax.vmap(one))(empty(name), x[0])
  assert_same_bits(mapped, (states[0], ys[0]))


def test_more_requests_than_rows_have_the_bits_of_each_alone():
  layer = make_layer("parallel")
  x = np.random.default_rng(3).standard_normal((6, D), np.float32)
  out = cell(layer, empty("parallel", batch=6), x)
  carry, y = jax.device_get(out)
  for b in (0, 5):
    after, alone = cell(layer, empty("parallel", batch=1), x[b : b + 1])
    assert_same_bits(y[b : b + 1], alone)
    same = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], carry)
    assert_same_bits(same, after)


def moved(tree, direction, step):
  return jax.tree.map(lambda leaf, d: leaf + step * d, tree, direction)


def test_a_cell_has_a_gradient_through_states_and_keys():
  """Against differences of the cell itself, in a random direction."""
  layer, x = make_layer("parallel"), inputs()
  carry = scanned("parallel", empty("parallel"), (70, 70)).carry
  given = carry.slots, carry.pages, x[:, 0]

  def loss(given):
    after, y = layer.cell(ExplicitCarry(carry.position, *given[:2]), given[2])
    leaves = jax.tree.leaves((after.slots, after.pages))
    return jnp.sum(y**2) + sum(jnp.sum(leaf**3) for leaf in leaves)

  compiled = {"compiler_options": {"xla_backend_optimization_level": 0}}
  gradient = jax.jit(jax.grad(loss), **compiled)(given)
  run = jax.jit(loss, **compiled)
  for part in range(3):
    direction = [jax.tree.map(jnp.zeros_like, tree) for tree in given]
    square = sum(jnp.sum(x**2) for x in jax.tree.leaves(gradient[part]))
    norm = float(jnp.sqrt(square))
    direction[part] = gradient[part]

    ahead, back = (
      run(moved(given, tuple(direction), step / norm)) for step in (1e-2, -1e-2)
    )
    slope = (ahead - back) / 2e-2
    assert abs(slope - norm) <= 1e-2 * norm


def test_inputs_of_as_many_chunks_share_a_program():
  layer, carry = make_layer("swiglu"), empty("swiglu")
  whole = np.asarray(layer.scan(carry, inputs()).y)
  before = explicit_programs.run_scan._cache_size()
  for tokens in (129, 140, 149):
    y = layer.scan(carry, inputs()[:, :tokens]).y
    assert_same_bits(y, whole[:, :tokens])
  assert explicit_programs.run_scan._cache_size() == before


def test_a_rung_is_chosen_that_pads_little():
  ladder = (1, 2, 4, 8, 16)
  chosen = [chunks_per_group(n, ladder) for n in (1, 3, 4, 13, 17, 33, 40)]
  assert chosen == [1, 1, 4, 16, 4, 8, 16]
  assert [chunks_per_group(n, (4,)) for n in (1, 5)] == [4, 4]
  assert chunks_per_group(5, (4, 8)) == 4


def shifted(carry, *positions):
  return carry._replace(position=jnp.array(positions))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"carry": (64, 70)},
      "carry.position holds 70; a scan begins at a multiple of 64",
    ),
    ({"carry": (0, 192)}, "the tokens reach to 342; .* room for 256"),
    ({"length": [10, 151]}, "length holds 151; it must be 0 to 150"),
    ({"length": [-1, 150]}, "length holds -1; it must be 0 to 150"),
    ({"length": [1, 2, 3]}, r"length of scan has shape \(3,\)"),
    ({"capture_at": (70,)}, "capture_at holds 70; .* a multiple of 64"),
    ({"capture_at": (192,)}, "capture_at holds 192; .* from 1 to 150"),
    ({"x": np.zeros((2, D), np.float32)}, r"x of scan has shape \(2, 64\)"),
    ({"x": np.zeros((3, 5, D), np.float32)}, "b is 3 elsewhere"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_scanned_is_refused(change, message):
  carry = shifted(empty("attention"), *change.get("carry", (0, 0)))
  given = {"x": inputs()} | {n: v for n, v in change.items() if n != "carry"}
  with pytest.raises(ValueError, match=message) as refused:
    make_layer("attention").scan(carry, **given)
  assert "\n" not in str(refused.value)


def test_a_full_carry_takes_no_token():
  carry = shifted(empty("attention"), 3, 256)
  with pytest.raises(ValueError, match=r"holds 256; there is room for 256"):
    make_layer("attention").cell(carry, inputs()[:, 0])


@pytest.mark.parametrize("capacity", [0, 513, 1.5, True])
@pytest.mark.usefixtures("unchecked_types")
def test_a_capacity_out_of_range_is_refused(capacity):
  with pytest.raises(ValueError, match=r"capacity is .* 1 to max_length = 512"):
    empty("attention", capacity=capacity)


@pytest.mark.parametrize("shape", [(D,), (1, 2, D), (0, D)])
def test_a_shape_of_no_requests_is_refused(shape):
  with pytest.raises(ValueError, match=r"input_shape is|batch is"):
    make_layer("attention").initialize_carry(shape)


def test_what_cannot_be_refused_is_not_a_number_and_changes_no_other():
  layer, x = make_layer("parallel"), inputs()
  carry = shifted(empty("parallel"), 64, 70)
  out = jax.device_get(scanned("parallel", carry, (130, 130)))
  right = scanned("parallel", shifted(empty("parallel"), 64, 64), (T, T))
  right = jax.device_get(right)
  assert_same_bits(out.y[0, :130], right.y[0, :130])
  for leaf in jax.tree.leaves((out.y[1], out.carry.slots)):
    assert np.isnan(leaf.reshape(-1)[-1])
  for leaf in jax.tree.leaves(out.captured):
    assert np.isnan(leaf[:, 1]).all() and np.isfinite(leaf[:, 0]).all()
  full = shifted(empty("parallel"), 256, 3)
  _, y = cell(layer, full, x[:, 0])
  assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


def test_a_request_without_tokens_stays_wherever_it_is():
  carry = shifted(empty("parallel"), 70, 0)
  out = jax.device_get(scanned("parallel", carry, (0, 10)))
  assert out.carry.position.tolist() == [70, 10]
  carry = jax.device_get(carry)
  first = jax.tree.map(lambda leaf: leaf[0], (out.carry, carry))
  assert_same_bits(first[0], first[1])


def test_arrays_that_do_not_belong_together_are_refused():
  layer, x = make_layer("attention"), inputs()
  carry = empty("attention")
  more = carry._replace(pages=jax.tree.map(lambda p: p[:1], carry.pages))
  with pytest.raises(
    ValueError, match=r"carry holds an array of .* 2 requests"
  ):
    layer.scan(more, x)
  with pytest.raises(
    ValueError, match=r"carry holds an array of .* 2 requests"
  ):
    layer.cell(more, x[:, 0])


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "float16"])
@pytest.mark.usefixtures("unchecked_types")
def test_inputs_of_another_dtype_are_refused(dtype):
  """They would be rounded, or computed in another precision, in silence."""
  layer, x = make_layer("attention"), inputs().astype(dtype)
  with pytest.raises(
    ValueError, match=f"x has dtype {dtype}; it must be float"
  ):
    layer.scan(empty("attention"), x)
  with pytest.raises(
    ValueError, match=f"x has dtype {dtype}; it must be float"
  ):
    layer.cell(empty("attention"), x[:, 0])
