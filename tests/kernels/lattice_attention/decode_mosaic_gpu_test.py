"""lattice_attention_step on GPU, in the interpreter; see `mosaic_gpu/suite.py`.

Transposed operands are not what a device sees: the interpreter does not follow
them, so the kernel makes transposed copies there. That the products themselves
are valid is shown by lowering, and by real compilation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.implementations import Device
from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  decode_mosaic_gpu,
  lattice_attention_step,
  ranges_mosaic_gpu,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import reference
from tests.kernels.attention_step_suite import AttentionStepSuite
from tests.kernels.attention_suite import Sizes
from tests.kernels.devices import BLACKWELL, HOPPER, lowered, traced_for
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.packing import bits


class MosaicGpuAttentionStepSuite(OnGpu, AttentionStepSuite):
  implementation = interpreted(MosaicGpuConfig())


def test_equals_softmax_attention_with_the_bits_of_any_batch(monkeypatch):
  """Two ranges; then one program takes both, in another row, other pages."""
  sizes, t = Sizes(64, 2, 1, 64, 14, 1, None, "bfloat16"), BLOCK_PAGES * 64 + 70
  suite = MosaicGpuAttentionStepSuite()
  suite.sizes, suite.blocks = sizes, 1
  sequences, pages = [(0, t), (1, 64)], sizes.scrambled(t, 64)
  pools = suite.pools(sequences, pages)
  outs, *after = suite.call(sequences, pages, pools, rows=[0, 2])
  check_outputs(sizes, sequences, outs)
  suite.check_written(sequences, pages, pools, after)
  monkeypatch.setattr(ranges_mosaic_gpu, "_ENOUGH_PROGRAMS", 1)
  suite.implementation = interpreted(MosaicGpuConfig(stages=3))
  moved = [(pages[0] + 7) % sizes.pages]
  pools = suite.pools(sequences[:1], moved)
  again, *_ = suite.call(sequences[:1], moved, pools, rows=[1], width=24)
  assert bits(again[0]) == bits(outs[0])


def test_a_window_begins_in_a_range_and_in_a_page():
  sizes, t = Sizes(64, 2, 2, 64, 14, 1, 150, "bfloat16"), BLOCK_PAGES * 64 + 70
  suite = MosaicGpuAttentionStepSuite()
  suite.sizes, suite.blocks = sizes, 1
  sequences, pages = [(0, t)], sizes.scrambled(t)
  pools = suite.pools(sequences, pages)
  for pool in pools:
    pool[pages[0][:6]] = np.nan  # none of their tokens is in the window
  outs, *_ = suite.call(sequences, pages, pools)
  check_outputs(sizes, sequences, outs)


def check_outputs(sizes, sequences, outs):
  """Each is that of softmax attention in float64, nearly."""
  for (seed, t), out in zip(sequences, outs, strict=True):
    q, k, v = sizes.tokens(seed, t)
    expected = reference.causal_attention(q[-1:], k, v, t - 1, sizes.window)
    assert reference.relative_error(out, expected[0]) <= 1e-2


def arguments(width=128, dtype=jnp.bfloat16, c=64, heads=16, kv_heads=2, b=3):
  q = jnp.zeros((b, heads, width), dtype)
  k, pool = jnp.zeros((b, kv_heads, width), dtype), (9, c, kv_heads, width)
  pool = jnp.zeros(pool, dtype)
  table = jnp.zeros((b, BLOCK_PAGES), jnp.int32)
  position, active = jnp.zeros(b, jnp.int32), jnp.zeros(b, bool)
  return q, k, k, pool, pool, position, active, table


@pytest.mark.parametrize(
  ("width", "heads", "window"),
  [(64, 2, 100), (128, 16, None), (256, 6, 100), (256, 48, None)],
)
def test_is_picked_and_lowers(width, heads, window):
  attend = functools.partial(lattice_attention_step, window=window)
  text = lowered(attend, *arguments(width, heads=heads), kind=HOPPER)
  assert "lattice_attention_ranges" in text
  assert "lattice_attention_combine" in text


def test_a_gradient_goes_through_the_form_in_xla_operations():
  def loss(q, *rest):
    return jnp.sum(lattice_attention_step(q, *rest)[0])

  text = lowered(jax.value_and_grad(loss), *arguments(), kind=HOPPER)
  assert "lattice_attention_ranges" in text


@pytest.mark.parametrize(
  ("width", "heads", "stages"),
  [(64, 2, 4), (128, 16, 2), (256, 16, 3), (256, 48, 3), (64, 128, 4)],
)
def test_takes_the_stages_that_there_is_room_for(width, heads, stages):
  q, k, *_ = arguments(width, heads=heads)
  config = decode_mosaic_gpu.heuristic(Device("gpu", HOPPER), q, k)
  assert config.stages == stages


def test_xla_is_picked_where_the_kernel_does_not_fit():
  text = lowered(lattice_attention_step, *arguments(width=32), kind=HOPPER)
  assert "mosaic_gpu" not in text


@pytest.mark.parametrize(
  ("choices", "reason"),
  [
    ({"dtype": jnp.float32}, "takes bfloat16 only"),
    ({"c": 32}, "takes pages of 64 tokens, and these have 32"),
    ({"width": 96}, ".* and these are 96 wide"),
    ({"heads": 65, "kv_heads": 1}, "takes 40 query heads of 128 per key .* 65"),
    ({"b": 65536, "width": 64, "heads": 2}, "takes 65535 .*rows.* not 65536"),
    ({"width": 256, "stages": 4}, r"takes \d+ bytes of shared memory"),
    ({"stages": 0}, "takes one stage or more, not 0"),
  ],
)
def test_says_why_it_does_not_fit(choices, reason):
  config = interpreted(MosaicGpuConfig(stages=choices.pop("stages", 2)))
  with pytest.raises(ValueError, match=f"mosaic_gpu: {reason}"):
    lattice_attention_step(*arguments(**choices), implementation=config)


def test_a_device_without_products_of_warpgroups_is_refused():
  with traced_for(BLACKWELL), pytest.raises(ValueError) as refused:
    lattice_attention_step(*arguments(), implementation="mosaic_gpu")
  assert "NVIDIA B200" in str(refused.value)


@pytest.mark.slow_kernels
class Test64(MosaicGpuAttentionStepSuite):
  sizes = Sizes(64, 2, 2, 64, 60, 14, None, "bfloat16")


@pytest.mark.slow_kernels
class Test128WithAWindow(MosaicGpuAttentionStepSuite):
  sizes = Sizes(64, 4, 2, 128, 60, 14, 200, "bfloat16")


@pytest.mark.slow_kernels
class Test256(MosaicGpuAttentionStepSuite):
  sizes = Sizes(64, 10, 1, 256, 60, 14, None, "bfloat16")
