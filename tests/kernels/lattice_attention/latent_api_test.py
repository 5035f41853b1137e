"""Attention to latents: the formula, one set of bits, the gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Choice
from sparse_prefix_jax.kernels.lattice_attention import (
  latent_attention,
  latent_attention_step,
)
from sparse_prefix_jax.kernels.lattice_attention.mosaic_tpu import Config
from tests.kernels import reference
from tests.kernels.attention_suite import Sizes, table_of
from tests.kernels.devices import TPUS, lowered
from tests.kernels.lattice_attention.api_test import dense_attention
from tests.kernels.mosaic_tpu.suite import INTERPRET, assert_no_race
from tests.kernels.operations import TOLERANCE
from tests.kernels.packing import Job, bits, chunks_of, pack, unpack

C, VALUES = 16, 20


@dataclasses.dataclass(frozen=True)
class LatentSizes(Sizes):
  """What is attended to, and by what.

  Attributes:
    values: Leading channels of a latent that are its value.
    implementation: As of the operations.
  """

  kv_heads: int = 1
  values: int = VALUES
  implementation: Choice = None

  @property
  def long(self):
    """Tokens of a request of 12 chunks."""
    return 11 * self.chunk + 4

  @functools.cached_property
  def packed_call(self):
    return self._compiled(latent_attention)

  @functools.cached_property
  def step(self):
    return self._compiled(latent_attention_step)

  def _compiled(self, operation):
    options = {"implementation": self.implementation}
    return jax.jit(
      functools.partial(operation, value_width=self.values, **options)
    )

  def assert_no_race(self):
    """The interpreter notes what is read before it was written."""
    if isinstance(self.implementation, Config):
      assert_no_race()

  def expected(self, q, latent, first=0):
    values = latent[..., : self.values]
    return reference.causal_attention(q, latent, values, first)


ON_TPU = LatentSizes(
  width=192, values=128, implementation=Config(interpret=INTERPRET)
)
ALL_SIZES = [
  LatentSizes(),
  LatentSizes(heads=1, dtype="bfloat16"),
  ON_TPU,
]
# Latents that lie one by one, and those of 16 bits.
MORE_ON_TPU = [
  dataclasses.replace(ON_TPU, width=256),
  dataclasses.replace(ON_TPU, dtype="bfloat16"),
]
each_size = pytest.mark.parametrize(
  "sizes",
  [
    *ALL_SIZES,
    *(pytest.param(x, marks=pytest.mark.slow_kernels) for x in MORE_ON_TPU),
  ],
)


def call(sizes, jobs, inputs, pages, pool, n=14):
  """Tokens of each job: outputs per job, and the pool."""
  packed = [pack(jobs, x, n, sizes.chunk) for x in zip(*inputs, strict=True)]
  table = jnp.asarray(table_of(pages, n))
  out, pool = sizes.packed_call(
    *packed, jnp.asarray(pool), chunks_of(jobs, n, sizes.chunk), table
  )
  return unpack(jobs, out, sizes.chunk), np.asarray(pool)


@functools.cache
def cold(sizes):
  """One request alone: its inputs, pages, outputs, and the pool."""
  (pages,), inputs = sizes.scrambled(sizes.long), sizes.tokens(5, sizes.long)
  inputs, jobs = inputs[:2], [Job(sizes.long)]
  (out,), pool = call(sizes, jobs, [inputs], [pages], sizes.free_pages())
  return inputs, pages, out, pool


@each_size
def test_equals_softmax_attention(sizes):
  (q, latent), pages, out, pool = cold(sizes)
  expected = sizes.expected(q, latent)
  error = reference.relative_error(out, expected)
  assert error <= TOLERANCE[sizes.dtype]
  held = pool[pages].reshape(-1, *latent.shape[1:])[: sizes.long]
  assert bits(held) == bits(latent)


def resumed(sizes, done):
  """Outputs of the request, and again of what follows some of its chunks."""
  inputs, pages, expected, before = cold(sizes)
  start = done * sizes.chunk
  # The pages of the prefix stand elsewhere now, everything else is NaN.
  moved, pool = (pages + 7) % sizes.pages, sizes.free_pages()
  pool[moved[:done]] = before[pages[:done]]
  others = [p for p in range(sizes.pages) if p not in moved]
  jobs = [Job(3), Job(sizes.long - start, start=start), Job(1)]
  rest = [sizes.tokens(6, 3)[:2], [x[start:] for x in inputs]]
  rest.append(sizes.tokens(7, 1)[:2])
  tables = [others[:1], moved, others[1:2]]
  outs, _ = call(sizes, jobs, rest, tables, pool, n=16)
  return expected, outs[1]


@each_size
@pytest.mark.parametrize("done", [1, 8, 11])
def test_resumed_in_any_packing_has_the_bits_of_cold(sizes, done):
  expected, again = resumed(sizes, done)
  assert bits(again) == bits(expected[done * sizes.chunk :])
  sizes.assert_no_race()


def stepped(sizes, row, others):
  """The last token of the long request in a row, beside two or none."""
  (q, latent), pages, _, pool = cold(sizes)
  pool = np.array(pool)
  shape, last = (5, *q.shape[1:]), sizes.long - 1
  place = last % sizes.chunk
  pool[pages[-1], place:] = np.nan  # it is written by the step
  queries, latents = (
    np.full(shape, np.nan, q.dtype),
    np.array(sizes.tokens(8, 5)[1]),
  )
  queries[row], latents[row] = q[last], latent[last]
  position, active = np.zeros(5, np.int32), np.zeros(5, bool)
  position[row], active[row] = last, True
  table = np.zeros((5, 16), np.int32)
  table[row, : len(pages)] = pages
  free = [p for p in range(sizes.pages) if p not in pages]
  for other, page in zip(others, free):
    queries[other], active[other], table[other, 0] = q[other], True, page
  arrays = map(jnp.asarray, (queries, latents, pool, position, active, table))
  out, after = sizes.step(*arrays)
  assert bits(after[pages[-1], place]) == bits(latent[last])
  return np.asarray(out[row])


@each_size
def test_a_step_equals_softmax_attention_with_the_same_bits_in_any_row(sizes):
  (q, latent), *_ = cold(sizes)
  first = stepped(sizes, 0, ())
  expected = sizes.expected(q[-1:], latent, sizes.long - 1)[0]
  assert reference.relative_error(first, expected) <= TOLERANCE[sizes.dtype]
  assert bits(stepped(sizes, 3, (0, 2))) == bits(first)
  sizes.assert_no_race()


def test_the_gradient_is_that_of_the_formula():
  sizes, past = ALL_SIZES[0], 2 * C
  q, latent = sizes.tokens(5, 45)[:2]
  (pages,) = sizes.scrambled(45)
  d_out = np.random.default_rng(0).normal(size=(45, 4, VALUES))
  d_out[:past] = 0
  jobs, n = [Job(45 - past, start=past)], 2
  pool = np.zeros_like(sizes.free_pages())
  for i in range(2):
    pool[pages[i]] = latent[i * C : (i + 1) * C]
  packed = [pack(jobs, [x[past:]], n, C) for x in (q, latent)]
  weights = pack(jobs, [d_out[past:].astype(np.float32)], n, C, padding=0)
  rest = chunks_of(jobs, n, C), jnp.asarray(table_of([pages], n))

  def loss(q, latent, pool):
    out, _ = latent_attention(q, latent, pool, *rest, value_width=VALUES)
    # Rows past a length hold anything, and weigh nothing.
    return jnp.sum(jnp.where(weights == 0, 0, out * weights))

  def formula(q, latent):
    out = dense_attention(q, latent, latent[..., :VALUES], None)
    return jnp.sum(out * d_out)

  arrays = [jnp.asarray(x) for x in (*packed, pool)]
  d_q, d_latent, d_pool = jax.grad(loss, argnums=(0, 1, 2))(*arrays)
  with jax.enable_x64(True):
    wide = reference.wide(q, latent)
    found = jax.grad(formula, argnums=(0, 1))(*wide)
    want_q, want_latent = map(np.asarray, found)
  (own_q,), (own,) = (unpack(jobs, x, C) for x in (d_q, d_latent))
  assert reference.relative_error(own_q, want_q[past:]) <= 1e-5
  assert reference.relative_error(own, want_latent[past:]) <= 1e-5
  before = np.asarray(d_pool)[pages[:2]].reshape(past, 1, -1)
  assert reference.relative_error(before, want_latent[:past]) <= 1e-5


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("width", [0, 33, True, 2.0])
def test_values_that_no_latent_holds_are_refused(width):
  sizes = ALL_SIZES[0]
  q, latent = sizes.tokens(0, C)[:2]
  jobs = [Job(C)]
  inputs = q[None], latent[None], jnp.zeros_like(sizes.free_pages())
  with pytest.raises(ValueError, match=r"value_width is .* int from 1 to 32"):
    latent_attention(
      *inputs,
      chunks_of(jobs, 1, C),
      table_of([[0]], 1),
      value_width=width,
    )


@pytest.mark.usefixtures("unchecked_types")
def test_pages_of_another_dtype_are_refused():
  sizes = ALL_SIZES[0]
  q, latent = sizes.tokens(0, C)[:2]
  pool = jnp.zeros(sizes.free_pages().shape, jnp.bfloat16)
  with pytest.raises(ValueError, match="latent_attention is bfloat16"):
    latent_attention(
      q[None],
      latent[None],
      pool,
      chunks_of([Job(C)], 1, C),
      table_of([[0]], 1),
      value_width=VALUES,
    )


def chunk_arguments(n=2, heads=32, width=576, dtype=jnp.bfloat16):
  """Zeros of the published widths of Kimi Linear, chunks of 64."""
  q = jnp.zeros((n, 64, heads, width), dtype)
  latent = jnp.zeros((n, 64, 1, width), dtype)
  table = jnp.zeros((1, 8), jnp.int32)
  return (
    q,
    latent,
    jnp.zeros((9, 64, 1, width), dtype),
    *(
      Chunks(*jnp.zeros((5, n), jnp.int32)),
      table,
    ),
  )


def step_arguments(b=8, heads=32, width=576, dtype=jnp.bfloat16):
  q, latent = (
    jnp.zeros((b, heads, width), dtype),
    jnp.zeros((b, 1, width), dtype),
  )
  position, active = jnp.zeros(b, jnp.int32), jnp.zeros(b, bool)
  table = jnp.zeros((b, 8), jnp.int32)
  return q, latent, jnp.zeros((9, 64, 1, width), dtype), position, active, table


@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("operation", "arguments"),
  [
    (latent_attention, chunk_arguments),
    (latent_attention_step, step_arguments),
  ],
)
def test_a_kernel_is_picked_for_the_published_widths(
  operation, arguments, dtype, device
):
  attend = functools.partial(operation, value_width=512)
  text = lowered(attend, *arguments(dtype=dtype), kind=device)
  assert text.count("tpu_custom_call") == 1
  assert f'kernel_name = "{operation.__name__}"' in text


@pytest.mark.parametrize(
  ("heads", "dtype", "kernels"),
  [
    (46, jnp.float32, 1),
    (64, jnp.float32, 0),
    (64, jnp.bfloat16, 1),
    (128, jnp.bfloat16, 0),
  ],
)
def test_chunks_of_many_heads_have_no_room(heads, dtype, kernels):
  """As the compiler found on a v5e."""
  attend = functools.partial(latent_attention, value_width=512)
  given = chunk_arguments(heads=heads, dtype=dtype)
  text = lowered(attend, *given, kind="TPU v5 lite")
  assert text.count("tpu_custom_call") == kernels


@pytest.mark.parametrize(
  ("choices", "values", "reason"),
  [
    ({}, 500, "values of 500 channels are not a multiple of 128"),
    ({"width": 584}, 512, "heads of width 584 are not a multiple of 64"),
    ({"heads": 128}, 512, "128 heads over 1 of width 576 take"),
  ],
)
def test_the_kernel_says_why_it_does_not_fit(choices, values, reason):
  config = Config(interpret=INTERPRET)
  with pytest.raises(ValueError, match=f"mosaic_tpu: {reason}"):
    latent_attention(
      *chunk_arguments(**choices), value_width=values, implementation=config
    )
