"""lattice_attention in XLA: right, of one set of bits, differentiable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention,
  lattice_attention_core,
  lattice_attention_step,
  xla,
)
from tests.kernels import reference
from tests.kernels.attention_step_suite import AttentionStepSuite
from tests.kernels.attention_suite import (
  WIDTH,
  AttentionSuite,
  Sizes,
  table_of,
)
from tests.kernels.packing import Job, bits, chunks_of, pack, unpack

SIZES = Sizes()
C = SIZES.chunk


class TestLatticeAttention(AttentionSuite):
  sizes = SIZES


class TestLatticeAttentionOfOneKeyHead(AttentionSuite):
  sizes = Sizes(kv_heads=1)


class TestLatticeAttentionOfAHeadPerQuery(AttentionSuite):
  sizes = Sizes(kv_heads=4)


class TestLatticeAttentionOfBfloat16(AttentionSuite):
  sizes = Sizes(dtype="bfloat16")


class TestLatticeAttentionOfAWindow(AttentionSuite):
  sizes = Sizes(window=24)


class TestLatticeAttentionOfAWindowOfBlocks(AttentionSuite):
  sizes = Sizes(window=130, dtype="bfloat16")


class TestStep(AttentionStepSuite):
  sizes = SIZES


class TestStepOfAHeadPerQuery(AttentionStepSuite):
  sizes = Sizes(kv_heads=4)


class TestStepOfBfloat16(AttentionStepSuite):
  sizes = Sizes(dtype="bfloat16")


class TestStepOfAWindow(AttentionStepSuite):
  sizes = Sizes(window=40)


@functools.cache
def compiled_step(window):
  return jax.jit(functools.partial(lattice_attention_step, window=window))


def take_step(inputs, position, keys, values, active, tables, window=None):
  step = compiled_step(window)
  return step(*inputs, keys, values, position, active, tables)


def prefilled(sizes, jobs, inputs, pages):
  """Keys and values of the jobs in their pages; NaN elsewhere."""
  suite, free = TestLatticeAttention(), sizes.free_pages()
  return suite.call(jobs, inputs, pages, free, free)[1:]


@pytest.mark.parametrize(
  "sizes", [SIZES, Sizes(kv_heads=4), Sizes(window=24), Sizes(window=1)]
)
def test_steps_equal_softmax_attention(sizes):
  lengths = (150, 33, 16)
  inputs = [sizes.tokens(i, t) for i, t in enumerate(lengths)]
  pages, jobs = sizes.scrambled(*lengths), [Job(t - 1) for t in lengths]
  heads = [[x[:-1] for x in arrays] for arrays in inputs]
  keys, values = prefilled(sizes, jobs, heads, pages)
  last = [np.stack(x) for x in zip(*[[y[-1] for y in z] for z in inputs])]
  out, keys, values = take_step(
    last,
    np.array(lengths, np.int32) - 1,
    keys,
    values,
    np.ones(3, bool),
    table_of(pages, 3),
    sizes.window,
  )
  for row, arrays in enumerate(inputs):
    expected = reference.causal_attention(*arrays, window=sizes.window)[-1]
    assert reference.relative_error(out[row], expected) <= 1e-5
    page, offset = pages[row][-1], (lengths[row] - 1) % C
    assert bits(keys[page, offset]) == bits(arrays[1][-1])
    assert bits(values[page, offset]) == bits(arrays[2][-1])


def test_one_by_one_tokens_are_written_as_at_once():
  """How a step for a TPU writes a single key head; here, beside the other."""
  rng = np.random.default_rng(3)
  pool = jnp.array(rng.normal(size=(5, C, 1, WIDTH)), jnp.float32)
  value = jnp.array(rng.normal(size=(4, 1, WIDTH)), jnp.float32)
  # Two rows are inactive: their page is past the end, and nothing is written.
  index = jnp.array([4, 5, 0, 5]), jnp.array([3, 0, C - 1, 2])
  one_by_one = jax.jit(xla._write_one_by_one)(pool, index, value)
  assert bits(one_by_one) == bits(xla._write(pool, index, value))
  assert bits(one_by_one) != bits(pool)


def test_a_step_has_the_same_bits_in_any_row_and_writes_only_if_active():
  (pages,) = SIZES.scrambled(40, seed=9)
  keys, values = prefilled(SIZES, [Job(40)], [SIZES.tokens(5, 40)], [pages])
  others = [p for p in range(SIZES.pages) if p not in pages]
  q, k, v = SIZES.tokens(8, 4)
  position, tables = np.full(4, 40, np.int32), table_of([others[:3]], 4)
  tables[2] = table_of([pages], 1)[0]

  def at_row(row, active):
    def moved(x):
      return np.roll(x, row - 2, axis=0)

    out, *pools = take_step(
      tuple(moved(x) for x in (q, k, v)),
      moved(position),
      keys,
      values,
      moved(active),
      moved(tables),
    )
    return np.asarray(out)[row], pools

  only = np.arange(4) == 2
  expected, (written, _) = at_row(2, only)
  changed = [p for p in range(SIZES.pages) if bits(written[p]) != bits(keys[p])]
  assert changed == [pages[2]]
  for row in (0, 1, 3):
    out, pools = at_row(row, only)
    assert bits(out) == bits(expected)
    assert bits(pools[0]) == bits(written)


@pytest.mark.parametrize("width", [1, BLOCK_PAGES - 1, BLOCK_PAGES + 1])
def test_page_table_of_another_width_is_refused(width):
  q, k, v = (x[None] for x in map(jnp.asarray, SIZES.tokens(0, C)))
  pool, table = (
    jnp.asarray(SIZES.free_pages()),
    jnp.zeros((1, width), jnp.int32),
  )
  message = f"page_table is {width} pages wide; .* multiple of {BLOCK_PAGES}"
  with pytest.raises(ValueError, match=message):
    lattice_attention(q, k, v, pool, pool, chunks_of([], 1, C), table)
  with pytest.raises(ValueError, match=message):
    lattice_attention_step(
      q[0, :1],
      k[0, :1],
      v[0, :1],
      pool,
      pool,
      table[0, :1],
      table[0, :1] == 0,
      table,
    )


def test_unknown_implementation_is_refused():
  q, k, v = (x[None] for x in map(jnp.asarray, SIZES.tokens(0, C)))
  pool, table = (
    jnp.asarray(SIZES.free_pages()),
    jnp.zeros((1, WIDTH), jnp.int32),
  )
  chunks = chunks_of([], 1, C)
  with pytest.raises(ValueError, match="'nonsense' of lattice_attention"):
    lattice_attention(
      q, k, v, pool, pool, chunks, table, implementation="nonsense"
    )


def test_an_unknown_implementation_of_a_step_is_refused():
  q, k, v = map(jnp.asarray, SIZES.tokens(0, 1))
  pool, table = jnp.asarray(SIZES.free_pages()), jnp.zeros((1, WIDTH), int)
  row = jnp.zeros(1, jnp.int32), jnp.ones(1, bool), table
  with pytest.raises(ValueError, match="'mosaic_tpu' of lattice_attention_st"):
    lattice_attention_step(
      q, k, v, pool, pool, *row, implementation="mosaic_tpu"
    )


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_is_refused(window):
  q, k, v = (x[None] for x in map(jnp.asarray, SIZES.tokens(0, C)))
  pool, table = jnp.asarray(SIZES.free_pages()), jnp.zeros((1, WIDTH), int)
  with pytest.raises(ValueError, match=f"window is {window}; .* at least"):
    lattice_attention(
      q, k, v, pool, pool, chunks_of([], 1, C), table, window=window
    )


def pack_request(arrays, n):
  """[t ...] of one request to [n c ...]; padding is NaN."""
  return [pack([Job(len(x))], [x], n, C) for x in arrays]


@pytest.mark.parametrize("window", [None, 24])
def test_the_core_has_the_bits_of_the_packed_form(window):
  inputs, t = SIZES.tokens(1, 150), 150
  length = chunks_of([Job(t)], 10, C).length
  suite = (
    TestLatticeAttention if window is None else TestLatticeAttentionOfAWindow
  )
  (pages,), free = SIZES.scrambled(t), SIZES.free_pages()
  (expected,), *_ = suite().call([Job(t)], [inputs], [pages], free, free)
  q, k, v = pack_request(inputs, 10)

  @functools.partial(jax.jit, static_argnums=3)
  def core(q, k, v, past):
    return lattice_attention_core(
      q[past:],
      k[past:],
      v[past:],
      length[past:],
      past_keys=k[:past],
      past_values=v[:past],
      window=window,
    )

  for past in (0, 3):
    resumed = Job(t - past * C)
    (out,) = unpack([resumed], core(q, k, v, past), C)
    assert bits(out) == bits(expected[past * C :])


def dense_attention(q, k, v, window):
  """The formula in float64, for automatic differentiation."""
  groups = q.shape[1] // k.shape[1]
  k, v = (jnp.repeat(x, groups, axis=1) for x in (k, v))
  row, key = jnp.arange(len(q))[:, None], jnp.arange(len(k))[None]
  seen = key <= row
  if window is not None:
    seen &= key > row - window
  scores = jnp.einsum("ihk,jhk->hij", q, k)
  weights = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf))
  return jnp.einsum("hij,jhk->ihk", weights, v)


@pytest.mark.parametrize("window", [None, 24])
def test_gradients_equal_those_of_the_formula(window):
  t, past, n = 70, 2, 5
  inputs = SIZES.tokens(2, t)
  d_out = np.random.default_rng(3).standard_normal(inputs[0].shape)
  d_out[: past * C] = 0.0  # queries of the past are not computed
  weight = pack([Job(t)], [d_out.astype(np.float32)], n, C, padding=0)
  length = chunks_of([Job(t)], n, C).length

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def gradients(q, k, v):
    out = lattice_attention_core(
      q[past:],
      k[past:],
      v[past:],
      length[past:],
      past_keys=k[:past],
      past_values=v[:past],
      window=window,
    )
    return jnp.sum(out * weight[past:])

  got = gradients(*pack_request(inputs, n))

  def loss(*x):
    return jnp.sum(dense_attention(*x, window) * d_out)

  with jax.enable_x64(True):
    want = jax.grad(loss, argnums=(0, 1, 2))(*reference.wide(*inputs))
    want = [np.asarray(x) for x in want]
  for gradient, expected in zip(got, want, strict=True):
    assert np.isfinite(gradient).all()
    (real,) = unpack([Job(t)], gradient, C)
    assert reference.relative_error(real, expected) <= 1e-4


def test_gradients_pass_through_jit_and_checkpoint():
  inputs = pack_request(SIZES.tokens(2, 40), 3)
  length = chunks_of([Job(40)], 3, C).length

  def loss(inputs, length):
    out = lattice_attention_core(*inputs, length)
    real = jnp.arange(C)[None, :, None, None] < length[:, None, None, None]
    return jnp.sum(jnp.where(real, out, 0.0))

  outer = jax.jit(jax.grad(loss))(inputs, length)
  for inner in (jax.jit(loss), jax.checkpoint(loss)):
    assert bits(jax.jit(jax.grad(inner))(inputs, length)) == bits(outer)


@pytest.mark.parametrize("given", ["past_keys", "past_values"])
def test_half_a_past_is_refused(given):
  q, k, v = pack_request(SIZES.tokens(2, 40), 3)
  length = chunks_of([Job(40)], 3, C).length
  with pytest.raises(ValueError, match="both are given"):
    lattice_attention_core(q, k, v, length, **{given: k[:1]})


@pytest.mark.parametrize("dtype", ["int8", "int32", "bfloat16"])
@pytest.mark.parametrize("wrong", ["key_pages", "value_pages"])
def test_pages_of_another_dtype_are_refused(wrong, dtype, unchecked_types):
  q, k, v = (x[None] for x in map(jnp.asarray, SIZES.tokens(0, C)))
  pool = jnp.zeros((SIZES.pages, *k.shape[1:]))
  pages = {"key_pages": pool, "value_pages": pool}
  pages[wrong] = pool.astype(dtype)
  table = jnp.zeros((1, BLOCK_PAGES), jnp.int32)
  with pytest.raises(ValueError, match=f"attention is {dtype}; .* float32"):
    lattice_attention(
      q, k, v, **pages, chunks=chunks_of([], 1, C), page_table=table
    )
  row, rest = (q[0, :1], k[0, :1], v[0, :1]), (table[0, :1], table[0, :1] == 0)
  with pytest.raises(ValueError, match=f"_step is {dtype}; .* float32"):
    lattice_attention_step(*row, *pages.values(), *rest, table)


@pytest.mark.parametrize("wrong", ["past_keys", "past_values"])
def test_a_past_of_another_dtype_is_refused(wrong):
  q, k, v = pack_request(SIZES.tokens(2, 40), 3)
  length = chunks_of([Job(40)], 3, C).length
  past = {"past_keys": k[:1], "past_values": v[:1]}
  past[wrong] = jnp.asarray(past[wrong], jnp.bfloat16)
  with pytest.raises(ValueError, match=r"core is bfloat16; .* float32"):
    lattice_attention_core(q, k, v, length, **past)


def test_a_window_where_64_bits_are_the_default():
  inputs = pack_request(SIZES.tokens(2, 20), 2)
  length = jnp.array([C, 4], jnp.int32)
  outs = []
  for wide in (False, True):
    with jax.enable_x64(wide):
      outs.append(lattice_attention_core(*inputs, length, window=5))
  assert bits(outs[0]) == bits(outs[1])
