"""lattice_attention on GPU, in the interpreter; see `mosaic_gpu/suite.py`.

One operand is not what a device sees: the interpreter does not follow a product
with transposed keys, so the kernel makes a transposed copy there. That the
product itself is valid is shown by lowering, and by real compilation.
"""

import functools

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import reference
from tests.kernels.attention_suite import AttentionSuite, Sizes
from tests.kernels.devices import HOPPER, lowered
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.packing import Job, bits, chunks_of

SMALL = Sizes(64, 2, 1, 64, 30, 5, 100, "bfloat16")


class MosaicGpuAttentionSuite(OnGpu, AttentionSuite):
  implementation = interpreted(MosaicGpuConfig())


def check_short(kind):
  """Two calls: against softmax attention, and the bits of the first again.

  Args:
    kind: Of the device that it is traced for.
  """
  suite, t = MosaicGpuAttentionSuite(), 210
  suite.sizes, suite.kind = SMALL, kind
  inputs, free = SMALL.tokens(0, t), SMALL.free_pages()
  (pages,) = SMALL.scrambled(t)
  (out,), *pools = suite.call([Job(t)], [inputs], [pages], free, free)
  expected = reference.causal_attention(*inputs, window=SMALL.window)
  assert reference.relative_error(out, expected) <= 1e-2
  changed = [
    p for p in range(SMALL.pages) if bits(pools[0][p]) != bits(free[p])
  ]
  assert changed == sorted(pages)
  jobs = [Job(3), Job(t - 128, start=128)]
  others = [p for p in range(SMALL.pages) if p not in pages]
  rest = [SMALL.tokens(1, 3), [x[128:] for x in inputs]]
  (_, again), *_ = suite.call(jobs, rest, [others[:1], pages], *pools)
  assert bits(again) == bits(out[128:])


def test_equals_softmax_attention_with_the_bits_of_any_packing():
  check_short(HOPPER)


def arguments(width=128, dtype=jnp.bfloat16, c=64):
  q = jnp.zeros((2, c, 8, width), dtype)
  k, pool = (jnp.zeros((n, c, 2, width), dtype) for n in (2, 9))
  table = jnp.zeros((2, BLOCK_PAGES), jnp.int32)
  return q, k, k, pool, pool, chunks_of([], 2, c), table


@pytest.mark.parametrize("window", [None, 100])
def test_is_picked_and_lowers(window):
  attend = functools.partial(lattice_attention, window=window)
  assert "mosaic_gpu" in lowered(attend, *arguments(), kind=HOPPER)


@pytest.mark.parametrize(
  ("choices", "reason"),
  [
    ({"dtype": jnp.float32}, "takes bfloat16 only"),
    ({"c": 32}, "takes chunks of 64 tokens, and these have 32"),
    ({"width": 96}, ".* and these are 96 wide"),
    ({"width": 256, "stages": 3}, r"takes \d+ bytes of shared memory"),
    ({"stages": 0}, "takes one stage or more, not 0"),
  ],
)
def test_says_why_it_does_not_fit(choices, reason):
  config = interpreted(MosaicGpuConfig(stages=choices.pop("stages", 2)))
  with pytest.raises(ValueError, match=f"mosaic_gpu: {reason}"):
    lattice_attention(*arguments(**choices), implementation=config)


@pytest.mark.slow_kernels
class Test64(MosaicGpuAttentionSuite):
  sizes = Sizes(64, 2, 1, 64, 40, 14, None, "bfloat16")


@pytest.mark.slow_kernels
class Test128WithAWindow(MosaicGpuAttentionSuite):
  sizes = Sizes(64, 2, 2, 128, 40, 14, 200, "bfloat16")


@pytest.mark.slow_kernels
class Test256(MosaicGpuAttentionSuite):
  sizes = Sizes(64, 1, 1, 256, 40, 14, None, "bfloat16")


@pytest.mark.slow_kernels
class Test256WithAWindowBelowAPage(MosaicGpuAttentionSuite):
  sizes = Sizes(64, 1, 1, 256, 40, 14, 40, "bfloat16")
