"""lattice_attention on TPU: interpreted against softmax, and lowered."""

import functools

import jax
import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention,
)
from sparse_prefix_jax.kernels.lattice_attention.mosaic_tpu import Config
from tests.kernels.attention_suite import AttentionSuite, Sizes
from tests.kernels.devices import TPUS, lowered
from tests.kernels.mosaic_tpu.suite import INTERPRET, assert_no_race
from tests.kernels.packing import chunks_of


class MosaicTpuAttentionSuite(AttentionSuite):
  implementation = Config(interpret=INTERPRET)

  def after_each(self):
    assert_no_race()


class TestMosaicTpu(MosaicTpuAttentionSuite):
  sizes = Sizes(width=64, window=150)


def arguments(
  width=128,
  kv_heads=2,
  dtype=jnp.float32,
  c=64,
  pages=9,
  table=(2, BLOCK_PAGES),
):
  q = jnp.zeros((2, c, 4 * kv_heads, width), dtype)
  k, pool = (jnp.zeros((n, c, kv_heads, width), dtype) for n in (2, pages))
  table = jnp.zeros(table, jnp.int32)
  return q, k, k, pool, pool, chunks_of([], 2, c), table


@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("window", [None, 100])
def test_is_picked_and_lowers(window, device):
  attend = functools.partial(lattice_attention, window=window)
  text = lowered(attend, *arguments(), kind=device)
  assert text.count("tpu_custom_call") == 1


@pytest.mark.parametrize(
  ("choices", "reason"),
  [
    ({"c": 24}, "chunks of 24 tokens are not a multiple of 16"),
    ({"width": 256, "kv_heads": 16}, "64 heads over 16 of width 256 take "),
    ({"width": 96}, "heads of width 96 are not a multiple of 64"),
    ({"dtype": jnp.float16}, "inputs of float16 are neither"),
    # Rows of a table are padded to 128 pages; the compiler has 1 MiB for it.
    ({"table": (2048, 8)}, "a page table of 2048 requests and 8 pages takes "),
    ({"table": (8, 32768)}, r"a page .* 1050112 bytes of SMEM, and .* 1032192"),
  ],
)
def test_says_why_it_does_not_fit(choices, reason):
  config = Config(interpret=INTERPRET)
  with pytest.raises(ValueError, match=f"mosaic_tpu: {reason}"):
    lattice_attention(*arguments(**choices), implementation=config)


def test_a_table_that_does_not_fit_falls_to_xla():
  for table, kernels in [((2000, 8), 1), ((2048, 8), 0)]:
    shapes = arguments(table=table)
    text = lowered(lattice_attention, *shapes, kind="TPU v6 lite")
    assert text.count("tpu_custom_call") == kernels


def test_less_memory_is_asked_for_where_a_core_has_less():
  shapes = arguments(kv_heads=4, dtype=jnp.bfloat16)
  text = lowered(lattice_attention, *shapes, kind="TPU v4")
  assert text.count("tpu_custom_call") == 1
  wide = arguments(width=256, kv_heads=8, dtype=jnp.bfloat16)
  for kind, kernels in [("TPU v5p", 1), ("TPU v4", 0)]:
    text = lowered(lattice_attention, *wide, kind=kind)
    assert text.count("tpu_custom_call") == kernels
  asked = Config(vmem_limit_bytes=96 * 2**20)
  told = "vmem_limit_bytes is 100663296, and a TPU v5p has 67108864 bytes"
  with pytest.raises(ValueError, match=told):
    attend = functools.partial(lattice_attention, implementation=asked)
    lowered(attend, *arguments(), kind="TPU v5p")


def test_keys_of_another_type_are_refused():
  q, k, v, *rest = arguments()
  with pytest.raises(ValueError, match="keys, values and pages differ"):
    lattice_attention(
      q.astype(jnp.bfloat16),
      k,
      v,
      *rest,
      implementation=Config(interpret=INTERPRET),
    )


@pytest.mark.slow_kernels
class TestMosaicTpuWithoutWindow(MosaicTpuAttentionSuite):
  sizes = Sizes(width=64)


@pytest.mark.slow_kernels
class TestMosaicTpuOfOneKeyHead(MosaicTpuAttentionSuite):
  sizes = Sizes(width=128, kv_heads=1)


@pytest.mark.slow_kernels
class TestMosaicTpuOfOneKeyHeadOfBfloat16(MosaicTpuAttentionSuite):
  sizes = Sizes(width=128, kv_heads=1, dtype="bfloat16")


@pytest.mark.slow_kernels
class TestMosaicTpuOfThreeKeyHeads(MosaicTpuAttentionSuite):
  sizes = Sizes(width=64, heads=3, kv_heads=3, window=40)


@pytest.mark.slow_kernels
class TestMosaicTpuOfAHeadPerQuery(MosaicTpuAttentionSuite):
  sizes = Sizes(width=128, kv_heads=4, window=24)


@pytest.mark.slow_kernels
class TestMosaicTpuOfWidth256(MosaicTpuAttentionSuite):
  sizes = Sizes(width=256, dtype="bfloat16", window=130)


@pytest.mark.slow_kernels
@pytest.mark.parametrize("device", TPUS)
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_every_width_lowers(width, dtype, kv_heads, device):
  shapes = arguments(width, kv_heads, jax.numpy.dtype(dtype))
  text = lowered(lattice_attention, *shapes, kind=device)
  assert text.count("tpu_custom_call") == 1
