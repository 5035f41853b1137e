"""lattice_attention_step on TPU: interpreted against softmax, and lowered."""

import functools

import jax
import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention_step,
)
from sparse_prefix_jax.kernels.lattice_attention.mosaic_tpu import Config
from tests.kernels.attention_step_suite import AttentionStepSuite
from tests.kernels.attention_suite import Sizes
from tests.kernels.devices import TPUS, lowered
from tests.kernels.mosaic_tpu.suite import INTERPRET, assert_no_race


class MosaicTpuAttentionStepSuite(AttentionStepSuite):
  implementation = Config(interpret=INTERPRET)

  def after_each(self):
    assert_no_race()


class TestMosaicTpuStep(MosaicTpuAttentionStepSuite):
  sizes, blocks = Sizes(width=64, chunk=16, window=30), 1


def arguments(
  width=128, dtype=jnp.float32, c=64, kv_heads=2, b=3, heads=8, pages=8
):
  q = jnp.zeros((b, heads, width), dtype)
  k, pool = jnp.zeros((b, kv_heads, width), dtype), (9, c, kv_heads, width)
  pool = jnp.zeros(pool, dtype)
  table = jnp.zeros((b, pages), jnp.int32)
  position, active = jnp.zeros(b, jnp.int32), jnp.zeros(b, bool)
  return q, k, k, pool, pool, position, active, table


@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("window", [None, 100])
def test_is_picked_and_lowers(window, device):
  attend = functools.partial(lattice_attention_step, window=window)
  text = lowered(attend, *arguments(), kind=device)
  assert text.count("tpu_custom_call") == 1
  assert "lattice_attention_step" in text


def test_a_gradient_goes_through_the_form_in_xla_operations():
  def loss(q, *rest):
    return jnp.sum(lattice_attention_step(q, *rest)[0])

  text = lowered(jax.value_and_grad(loss), *arguments(), kind=TPUS[0])
  assert text.count("tpu_custom_call") == 1


@pytest.mark.parametrize(
  ("choices", "reason"),
  [
    ({"c": 24}, "chunks of 24 tokens are not a multiple of 16"),
    ({"width": 96}, "heads of width 96 are not a multiple of 64"),
    ({"dtype": jnp.float16}, "inputs of float16 are neither"),
    ({"width": 512, "kv_heads": 16, "heads": 16}, "16 heads over 16 of width"),
    ({"b": 8, "pages": 32768}, "a page table of 8 requests and 32768 pages"),
  ],
)
def test_says_why_it_does_not_fit(choices, reason):
  config = Config(interpret=INTERPRET)
  with pytest.raises(ValueError, match=f"mosaic_tpu: {reason}"):
    lattice_attention_step(*arguments(**choices), implementation=config)


def test_a_table_that_does_not_fit_falls_to_xla():
  for b, kernels in [(1900, 1), (2048, 0)]:
    shapes = arguments(b=b, pages=BLOCK_PAGES)
    text = lowered(lattice_attention_step, *shapes, kind="TPU v6 lite")
    assert text.count("tpu_custom_call") == kernels


@pytest.mark.parametrize(
  ("heads", "width", "dtype", "kernels"),
  [
    (32, 64, "float32", 1),
    (48, 64, "float32", 0),
    (48, 64, "bfloat16", 1),
    (64, 64, "bfloat16", 0),
    (40, 128, "bfloat16", 1),
    (128, 128, "bfloat16", 0),
  ],
)
def test_heads_that_have_no_room_are_left_to_xla(heads, width, dtype, kernels):
  """As the compiler found on a v5e: 64 lanes take as much as 128."""
  shapes = arguments(width, jnp.dtype(dtype), kv_heads=heads, heads=heads, b=8)
  text = lowered(lattice_attention_step, *shapes, kind="TPU v5 lite")
  assert text.count("tpu_custom_call") == kernels


@pytest.mark.slow_kernels
class TestMosaicTpuStepWithoutWindow(MosaicTpuAttentionStepSuite):
  sizes = Sizes(width=64)


@pytest.mark.slow_kernels
class TestMosaicTpuStepOfOneKeyHeadOfBfloat16(MosaicTpuAttentionStepSuite):
  sizes = Sizes(width=128, kv_heads=1, dtype="bfloat16")


@pytest.mark.slow_kernels
class TestMosaicTpuStepOfAHeadPerQuery(MosaicTpuAttentionStepSuite):
  sizes = Sizes(width=64, heads=3, kv_heads=3, window=40)


@pytest.mark.slow_kernels
class TestMosaicTpuStepOfWidth256(MosaicTpuAttentionStepSuite):
  sizes = Sizes(width=256, dtype="bfloat16", window=130)


@pytest.mark.slow_kernels
@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_every_width_lowers(width, dtype, kv_heads, device):
  shapes = arguments(width, jnp.dtype(dtype), kv_heads=kv_heads, heads=24)
  text = lowered(lattice_attention_step, *shapes, kind=device)
  assert text.count("tpu_custom_call") == 1
