"""lattice_attention_step on GPU, in the interpreter; see `mosaic_gpu/suite.py`.

Transposed operands are not what a device sees: the interpreter does not follow
them, so the kernel makes transposed copies there. That the products themselves
are valid is shown by lowering, and by real compilation.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention_step,
  ranges_mosaic_gpu,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import reference
from tests.kernels.attention_step_suite import AttentionStepSuite
from tests.kernels.attention_suite import Sizes
from tests.kernels.devices import BLACKWELL, HOPPER, lowered
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.packing import bits


class MosaicGpuAttentionStepSuite(OnGpu, AttentionStepSuite):
  implementation = interpreted(MosaicGpuConfig())


def check_short(sizes, stages=2):
  """Two calls: against softmax attention, and the bits of the first again."""
  suite, t = MosaicGpuAttentionStepSuite(), BLOCK_PAGES * 64 + 70
  suite.sizes, suite.blocks = sizes, 1
  suite.implementation = interpreted(MosaicGpuConfig(stages=stages))
  sequences, pages = [(0, t), (1, 64)], sizes.scrambled(t, 64)
  pools = suite.pools(sequences, pages)
  outs, *after = suite.call(sequences, pages, pools, rows=[0, 2])
  for (seed, t), out in zip(sequences, outs, strict=True):
    q, k, v = sizes.tokens(seed, t)
    expected = reference.causal_attention(q[-1:], k, v, t - 1, sizes.window)
    assert reference.relative_error(out, expected[0]) <= 1e-2
  suite.check_written(sequences, pages, pools, after)
  # The longer one alone, in another row, on other pages, in a wider table.
  moved = [(pages[0] + 7) % sizes.pages]
  pools = suite.pools(sequences[:1], moved)
  again, *_ = suite.call(sequences[:1], moved, pools, rows=[1], width=24)
  assert bits(again[0]) == bits(outs[0])


@pytest.mark.parametrize(
  "sizes",
  [
    Sizes(64, 2, 1, 64, 14, 1, None, "bfloat16"),
    Sizes(64, 2, 2, 64, 14, 1, 100, "bfloat16"),
  ],
)
def test_equals_softmax_attention_with_the_bits_of_any_batch(sizes):
  check_short(sizes)


def test_programs_take_turns_where_there_are_many_ranges(monkeypatch):
  """A program that takes all ranges of a row has the bits of one for each."""
  sizes = Sizes(64, 1, 1, 64, 14, 1, None, "bfloat16")
  suite, t = MosaicGpuAttentionStepSuite(), BLOCK_PAGES * 64 + 3
  suite.sizes, suite.blocks = sizes, 1
  sequences, pages = [(0, t)], sizes.scrambled(t)
  found = []
  for stages, enough in ((2, 2048), (3, 1)):
    suite.implementation = interpreted(MosaicGpuConfig(stages=stages))
    monkeypatch.setattr(ranges_mosaic_gpu, "_ENOUGH_PROGRAMS", enough)
    pools = suite.pools(sequences, pages)
    found.append(suite.call(sequences, pages, pools)[0])
  assert bits(found[0]) == bits(found[1])


def arguments(width=128, dtype=jnp.bfloat16, c=64, heads=16, kv_heads=2, b=3):
  q = jnp.zeros((b, heads, width), dtype)
  k, pool = jnp.zeros((b, kv_heads, width), dtype), (9, c, kv_heads, width)
  pool = jnp.zeros(pool, dtype)
  table = jnp.zeros((b, BLOCK_PAGES), jnp.int32)
  position, active = jnp.zeros(b, jnp.int32), jnp.zeros(b, bool)
  return q, k, k, pool, pool, position, active, table


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(
  ("width", "heads"), [(64, 2), (128, 16), (256, 6), (256, 128)]
)
def test_is_picked_and_lowers(width, heads, window):
  attend = functools.partial(lattice_attention_step, window=window)
  text = lowered(attend, *arguments(width, heads=heads), kind=HOPPER)
  assert text.count("mosaic_gpu_v2") == 2 or text.count("mosaic_gpu") >= 2


def test_xla_is_picked_where_the_kernel_does_not_fit():
  text = lowered(lattice_attention_step, *arguments(width=32), kind=HOPPER)
  assert "mosaic_gpu" not in text


@pytest.mark.parametrize(
  ("choices", "reason"),
  [
    ({"dtype": jnp.float32}, "takes bfloat16 only"),
    ({"c": 32}, "takes pages of 64 tokens, and these have 32"),
    ({"width": 96}, ".* and these are 96 wide"),
    ({"heads": 65, "kv_heads": 1}, "takes 64 query heads per key head .* 65"),
    ({"b": 65536, "width": 64, "heads": 2}, "takes 65535 rows.* not 65536"),
    ({"width": 256, "stages": 4}, r"takes \d+ bytes of shared memory"),
    ({"stages": 0}, "takes one stage or more, not 0"),
  ],
)
def test_says_why_it_does_not_fit(choices, reason):
  config = interpreted(MosaicGpuConfig(stages=choices.pop("stages", 2)))
  with pytest.raises(ValueError, match=f"mosaic_gpu: {reason}"):
    lattice_attention_step(*arguments(**choices), implementation=config)


@pytest.mark.slow_kernels
class Test64(MosaicGpuAttentionStepSuite):
  sizes = Sizes(64, 2, 2, 64, 60, 14, None, "bfloat16")


@pytest.mark.slow_kernels
class Test128WithAWindow(MosaicGpuAttentionStepSuite):
  sizes = Sizes(64, 4, 2, 128, 60, 14, 200, "bfloat16")


@pytest.mark.slow_kernels
class Test256(MosaicGpuAttentionStepSuite):
  sizes = Sizes(64, 10, 1, 256, 60, 14, None, "bfloat16")
