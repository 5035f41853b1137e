"""The packed scan on TPU means what `chunks.packed_scan` means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels import chunks as plain
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks
from sparse_prefix_jax.kernels.gated_delta_rule import gated_delta_rule
from sparse_prefix_jax.kernels.linear_attention import linear_attention
from sparse_prefix_jax.kernels.mosaic_tpu.fit import refusal_of_state
from sparse_prefix_jax.kernels.mosaic_tpu.scan import (
  Config,
  Operand,
  packed_scan,
)
from tests.kernels.devices import lowered
from tests.kernels.mosaic_tpu.suite import INTERPRET, assert_no_race
from tests.kernels.packing import bits, chunks_of, poisoned_pool

C, D, SLOTS = 16, 256, 300


def cell(carry, x, length):
  """Any function of the carry, the chunk and its length."""
  carry = carry * 0.5 + x[:1] + length.astype(jnp.float32)
  return carry, x + carry


def kernel_cell(carry, xs, y, length):
  advanced, y[...] = cell(carry[0], xs[0][...], length)
  carry[0] = advanced


@functools.partial(jax.jit, static_argnums=3)
def on_tpu(x, pool, chunks, in_place):
  return packed_scan(
    kernel_cell,
    [Operand(x, 2)],
    Operand(jax.ShapeDtypeStruct(x.shape, x.dtype), 2),
    Operand(pool, 2),
    chunks,
    blocks=2,
    config=Config(interpret=INTERPRET),
    name="test",
    in_place=in_place,
  )


def in_xla(x, pool, chunks):
  return jax.jit(functools.partial(plain.packed_scan, cell))(pool, x, chunks)


# Requests as (read, writes), one length per chunk.
PLANS = {
  "no work": [((CARRY, NONE), 0)] * 4,
  "carry from nothing": [((CARRY, 7), 3), ((CARRY, NONE), 16)],
  "one chunk": [((5, 5), 1)],
  "captures of every chunk": [((ZERO, i), 16) for i in range(1)]
  + [((CARRY, i), 16) for i in range(1, 5)],
  "own slot, then others": [
    ((3, NONE), 16),
    ((CARRY, 3), 16),
    ((299, 298), 16),
    ((ZERO, 299), 2),
    ((7, 7), 16),
    ((CARRY, NONE), 0),
  ],
  "a copy by an inactive chunk": [((11, 12), 0), ((ZERO, 0), 0)],
  "inactive at the end": [((ZERO, 1), 9)] + [((CARRY, NONE), 0)] * 3,
  "capture of the last, inactive": [((ZERO, 1), 9), ((CARRY, 2), 0)],
}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("plan", PLANS)
def test_means_what_the_plain_scan_means(plan, in_place):
  slots, length = zip(*PLANS[plan], strict=True)
  read, write = np.array(slots, np.int32).T
  nothing = np.zeros_like(read)
  chunks = Chunks(
    *map(jnp.asarray, (read, write, np.int32(length), nothing, nothing))
  )
  random = np.random.default_rng(0)
  x = random.standard_normal((len(read), C, D), np.float32)
  x[np.array(length) == 0] = np.nan  # never read
  pool = poisoned_pool((SLOTS, 1, D))
  for slot in (3, 5, 7, 11, 299):
    pool[slot] = random.standard_normal((1, D))
  y, after = map(np.asarray, on_tpu(x, pool, chunks, in_place))
  assert_no_race()
  expected, expected_pool = in_xla(x, pool, chunks)
  for i, real in enumerate(length):
    want = expected[i] if real else np.zeros((C, D), np.float32)
    assert bits(y[i]) == bits(want)
  assert bits(after) == bits(expected_pool)


def arguments(c=64, k=64, v=64, h=1, dtype=jnp.float32):
  x, gate = jnp.zeros((1, c, h, k), dtype), jnp.zeros((1, c, h))
  values, pool = jnp.zeros((1, c, h, v), dtype), jnp.zeros((2, h, k, v))
  return x, x, values, gate, pool, chunks_of([], 1, c)


@pytest.mark.parametrize(
  ("choices", "reason"),
  [
    ({"c": 8}, "chunks of 8 tokens are not a multiple of 16"),
    ({"k": 48}, "widths 48 and 64 are not multiples of 64"),
    ({"v": 96}, "widths 64 and 96 are not multiples of 64"),
    ({"dtype": jnp.float16}, "inputs of float16 are neither"),
  ],
)
def test_says_why_it_does_not_fit(choices, reason):
  config = Config(interpret=INTERPRET)
  with pytest.raises(ValueError, match=f"mosaic_tpu: {reason}"):
    linear_attention(*arguments(**choices), implementation=config)


def test_blocks_and_precisions_that_do_not_fit_are_refused():
  config = Config(interpret=INTERPRET, block=2)
  with pytest.raises(ValueError, match="block 2 does not divide 3 value heads"):
    linear_attention(*arguments(h=3), implementation=config)
  with pytest.raises(ValueError, match=r"1024 tokens take about \d+ bytes"):
    linear_attention(*arguments(c=1024, h=2), implementation=config)
  config, high = Config(interpret=INTERPRET), jax.lax.Precision.HIGH
  with pytest.raises(ValueError, match="neither at HIGHEST nor at DEFAULT"):
    linear_attention(*arguments(), precision=high, implementation=config)


def test_states_must_be_float32():
  reason = refusal_of_state(jnp.zeros((1, 1, 64, 64), jnp.bfloat16))
  assert reason == "states are bfloat16 and must be float32"


def test_without_a_tpu_the_name_is_refused():
  with pytest.raises(ValueError, match="mosaic_tpu: needs a tpu, and this is"):
    linear_attention(*arguments(), implementation="mosaic_tpu")


def test_what_does_not_fit_falls_back_to_xla():
  x, _, values, gate, pool, chunks = arguments(k=48)
  text = lowered(
    gated_delta_rule,
    x,
    x,
    values,
    gate,
    gate,
    pool,
    chunks,
    kind="TPU v6 lite",
  )
  assert "tpu_custom_call" not in text
