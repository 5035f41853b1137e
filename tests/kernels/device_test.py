"""The suites on the device at hand, which `make device` runs.

On a GPU the Mosaic kernels run as they are, compiled, and the XLA forms beside
them; where there is no accelerator, XLA forms of narrow heads, so that the
command itself is tried.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Chunks
from sparse_prefix_jax.kernels.row_products import row_products
from sparse_prefix_jax.runtime import programs, sampler
from sparse_prefix_jax.serving.sampling import Sampling, sampling_rows
from tests.kernels import operations, reference
from tests.kernels.attention_step_suite import AttentionStepSuite
from tests.kernels.attention_suite import AttentionSuite, Sizes
from tests.kernels.lattice_attention import latent_api_test as latents
from tests.kernels.matrix_suite import MatrixSuite
from tests.kernels.step_suite import (
  DecayingStepSuite,
  KernelStepSuite,
  StepSuite,
)
from tests.kernels.suite import InPlaceSuite, PackedSuite
from tests.trees import assert_same_bits

pytestmark = pytest.mark.device

KERNELS = {"gpu": "mosaic_gpu", "tpu": "mosaic_tpu"}.get(
  jax.default_backend(), "xla"
)
HAS_KERNELS = KERNELS != "xla"
STEPS = "mosaic_gpu" if KERNELS == "mosaic_gpu" else "xla"
HARDEST = (
  *("repeated-0.0-1.0", "repeated-0.0-gates", "repeated--0.0001-gates"),
  *("random-gates-gates", "random--20.0-gates", "correlated-0.0-gates"),
  *("correlated-mixed-gates", "correlated--inf-gates"),
)


class InPlace(InPlaceSuite if HAS_KERNELS else object):
  """Kernels update the pool where it lies; XLA's own forms are tested apart."""


class Matrices(MatrixSuite, PackedSuite, InPlace):
  """The recurrences on matrix states, in the device's kernels."""

  dtype, implementation = "bfloat16", KERNELS


class TestOfWidth64(Matrices):
  sizes = (1, 2, 64, 64)
  cases = None if HAS_KERNELS else HARDEST


class TestOfWidth128(Matrices):
  sizes = (2, 4, 128, 128) if HAS_KERNELS else (1, 1, 32, 32)
  cases = None if HAS_KERNELS else HARDEST[:1]


class TestOfWidth256(Matrices):
  sizes = (1, 1, 256, 256) if HAS_KERNELS else (1, 1, 16, 16)
  cases = HARDEST if HAS_KERNELS else HARDEST[:1]


class TestXlaOfFloat32(Matrices):
  sizes, dtype, implementation = (1, 2, 64, 64), "float32", "xla"
  cases = HARDEST if HAS_KERNELS else HARDEST[:1]


class TestXlaOfBfloat16(TestXlaOfFloat32):
  dtype = "bfloat16"


class Decaying(DecayingStepSuite if STEPS != "xla" else StepSuite):
  """Steps of one token, in the kernel where there is one."""

  implementation = STEPS


class Steps(MatrixSuite, Decaying):
  """Those of the recurrences on matrix states."""

  dtype = "bfloat16"


class TestStepsOfWidth64(Steps):
  sizes = (1, 2, 64, 64)


class TestStepsOfWidth128(Steps):
  sizes = (2, 4, 128, 128) if HAS_KERNELS else (2, 4, 32, 32)


class TestStepsOfWidth256(Steps):
  sizes = (1, 1, 256, 256) if HAS_KERNELS else (1, 1, 16, 16)


class TestStepsOfFloat32(Steps):
  sizes, dtype = (1, 2, 128, 64), "float32"


class TestXlaSteps(MatrixSuite, StepSuite):
  sizes, implementation = (1, 2, 64, 64), "xla"


class TestConvolution(PackedSuite, InPlace):
  operation = operations.causal_conv1d_at(256, 4, "bfloat16", 64)
  implementation = KERNELS


class Windows(KernelStepSuite if STEPS != "xla" else StepSuite):
  """Steps of the convolution, in the kernel where there is one."""

  implementation = STEPS


class TestConvolutionStep(Windows):
  operation = operations.causal_conv1d_at(256, 4, "bfloat16", 64)


class TestConvolutionOfFloat32(PackedSuite):
  operation = operations.causal_conv1d_at(128, 2, "float32", 64)
  implementation = KERNELS


class TestConvolutionStepOfFloat32(Windows):
  operation = operations.causal_conv1d_at(128, 2, "float32", 64)


class TestDiagonalScan(PackedSuite, InPlace):
  operation = operations.diagonal_scan_at(256, "float32")
  implementation = KERNELS


class TestDiagonalStep(Decaying):
  operation = operations.diagonal_scan_at(256, "float32")


class TestDiagonalScanOfBfloat16(PackedSuite):
  operation = operations.diagonal_scan_at(256, "bfloat16")
  implementation = KERNELS


class TestSelectiveScan(PackedSuite, InPlace):
  operation = operations.selective_scan_at(128, 16, "float32")
  implementation = KERNELS


class TestSelectiveStep(Decaying):
  operation = operations.selective_scan_at(128, 16, "float32")


class TestSelectiveScanOfBfloat16(PackedSuite):
  operation = operations.selective_scan_at(128, 16, "bfloat16")
  implementation = KERNELS


class Attention(AttentionSuite):
  """Prefill attention, in the device's kernel."""

  implementation = KERNELS


class TestAttentionOfWidth64(Attention):
  sizes = Sizes(64, 4, 2, 64, 60, 14, None, "bfloat16")


class TestAttentionOfWidth128(Attention):
  sizes = Sizes(64, 8, 2, 128 if HAS_KERNELS else 32, 60, 14, 200, "bfloat16")


class TestAttentionOfWidth256(Attention):
  sizes = Sizes(64, 4, 2, 256 if HAS_KERNELS else 16, 60, 14, None, "bfloat16")


class AttentionSteps(AttentionStepSuite):
  """One token of running sequences, in the kernel where there is one."""

  implementation = "mosaic_gpu" if KERNELS == "mosaic_gpu" else "xla"


class TestAttentionStepsOfWidth64(AttentionSteps):
  sizes = Sizes(64, 2, 2, 64, 70, 14, None, "bfloat16")


class TestAttentionStepsOfWidth128(AttentionSteps):
  sizes = Sizes(64, 16, 2, 128 if HAS_KERNELS else 32, 70, 14, None, "bfloat16")


class TestAttentionStepsWithAWindow(AttentionSteps):
  sizes = Sizes(64, 4, 2, 128 if HAS_KERNELS else 32, 70, 14, 200, "bfloat16")


class TestAttentionStepsOfWidth256(AttentionSteps):
  sizes = Sizes(64, 12, 1, 256 if HAS_KERNELS else 16, 70, 14, None, "bfloat16")


class TestAttentionStepsOfManyHeads(AttentionSteps):
  sizes = Sizes(64, 40, 1, 128 if HAS_KERNELS else 16, 70, 14, None, "bfloat16")


class TestAttentionStepsOfLongSequences(AttentionSteps):
  """More ranges than a program's buffers take at a time."""

  sizes = Sizes(64, 8, 1, 128 if HAS_KERNELS else 16, 300, 14, None, "bfloat16")
  blocks = 20 if HAS_KERNELS else 3


class TestXlaAttentionSteps(AttentionStepSuite):
  sizes = Sizes(64, 4, 2, 64, 70, 14, None, "float32")
  implementation = "xla"


class TestXlaAttention(AttentionSuite):
  sizes = Sizes(64, 2, 1, 64, 40, 14, None, "float32")
  implementation = "xla"


LATENTS = latents.LatentSizes(
  chunk=64,
  heads=32 if HAS_KERNELS else 2,
  width=576 if HAS_KERNELS else 24,
  values=512 if HAS_KERNELS else 16,
  dtype="bfloat16",
  implementation=KERNELS,
)


def test_latents_equal_softmax_attention():
  (q, latent), _, out, _ = latents.cold(LATENTS)
  expected = LATENTS.expected(q, latent)
  limit = operations.TOLERANCE[LATENTS.dtype]
  assert reference.relative_error(out, expected) <= limit
  step = latents.stepped(LATENTS, 0, ())
  assert reference.relative_error(step, expected[-1]) <= limit
  assert_same_bits(latents.stepped(LATENTS, 3, (0, 2)), step)


@pytest.mark.parametrize("done", [1, 8, 11])
def test_latents_resumed_in_any_packing_have_the_bits_of_cold(done):
  out, resumed = latents.resumed(LATENTS, done)
  assert_same_bits(resumed, out[done * LATENTS.chunk :])


def some_products(rows, inputs, outputs):
  """Rows, weights, and the products that the device finds."""
  random = np.random.default_rng(0)
  x, *weights = (
    jnp.asarray(random.standard_normal((n, inputs), np.float32), "bfloat16")
    for n in (rows, *outputs)
  )
  # The kernel on Hopper, XLA's form elsewhere.
  run = jax.jit(functools.partial(row_products, precision="highest"))
  return x, weights, lambda x: jax.tree.map(np.asarray, run(x, weights))


PRODUCTS = [
  *((16, 1024, (3584, 3584)), (64, 1024, (6144, 2048))),
  *((16, 3584, (1024,)), (64, 2048, (1024,)), (8, 1024, (4096, 512, 512))),
]


@pytest.mark.parametrize("sizes", PRODUCTS)
def test_products_of_rows_are_exact_but_for_rounding(sizes):
  x, weights, run = some_products(*sizes)
  for out, weight in zip(run(x), weights, strict=True):
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    error = np.abs(out.astype(np.float64) - expected)
    assert (error <= 2**-8 * np.abs(expected) + 1e-5 * expected.max()).all()


@pytest.mark.parametrize("sizes", PRODUCTS)
def test_products_of_a_row_have_its_bits_in_any_place(sizes):
  x, _, run = some_products(*sizes)
  order = np.random.default_rng(1).permutation(len(x))
  alone = run(jnp.full_like(x, jnp.nan).at[3].set(x[3]))
  for moved, own, out in zip(run(x[order]), alone, run(x), strict=True):
    assert_same_bits(moved, out[order])
    assert_same_bits(own[3], out[3])


def test_what_a_row_draws_hangs_on_no_batch():
  """A request that was preempted draws in a program of other rows."""
  random, vocab = np.random.default_rng(0), 1000
  logits = random.standard_normal((64, vocab), np.float32)
  asked = [
    Sampling(),
    Sampling(temperature=0.8, top_p=0.9, seed=1),
    Sampling(temperature=1.2, top_k=9, best=3, seed=2),
    Sampling(repetition_penalty=1.5, min_p=0.1, temperature=2.0),
  ]
  for own in asked:
    found = []
    for b, place in ((2, 0), (16, 5), (17, 16), (64, 33)):
      rows = [asked[(i + b) % len(asked)] for i in range(b)]
      rows[place], here = own, logits[:b].copy()
      here[place] = logits[-1]
      positions = np.arange(b, dtype=np.int32)
      positions[place] = 77
      packed, counts = sampling_rows(rows, vocab), sampler.no_counts(vocab)
      drawn, _ = sampler.sample(here, packed, counts, positions)
      found.append(jax.tree.map(lambda x, i=place: np.asarray(x)[i], drawn))
    for other in found[1:]:
      assert_same_bits(other, found[0])


RUNGS = (1, 2, 4, 16)
GROUP = max(RUNGS)


@pytest.fixture(scope="module")
def group_of_chunks():
  """Prefill programs: tokens [n c] of n requests -> hidden [n c d]."""
  config = preset("qwen3_5_0_8b_group" if HAS_KERNELS else "tiny").replace(
    dtype="bfloat16" if HAS_KERNELS else "float32", ladder=RUNGS
  )
  model = HybridDecoder(config, rngs=nnx.Rngs(0))
  frozen, c = programs.freeze(model), config.numerics.chunk

  def run(tokens):
    n = len(tokens)
    each = np.arange(n, dtype=np.int32)
    table = np.zeros((n, config.numerics.max_length // c), np.int32)
    table[:, 0] = each
    alike = [np.full(n, x, np.int32) for x in (ZERO, NONE, c, 0)]
    chunks = jax.tree.map(jnp.asarray, Chunks(*alike, each))
    group = programs.Group(jnp.asarray(tokens), chunks, jnp.asarray(table))
    pools = model.init_pools(slots=GROUP, pages=GROUP)
    return np.asarray(programs.prefill_group(frozen, pools, group)[0])

  return run


def some_tokens(seed):
  c = preset("tiny").numerics.chunk
  return np.random.default_rng(seed).integers(0, 512, (GROUP, c), np.int32)


@pytest.mark.parametrize("places", range(1, GROUP))
def test_a_chunk_has_its_bits_at_every_place_of_a_group(
  group_of_chunks, places
):
  tokens = some_tokens(0)
  moved = group_of_chunks(np.roll(tokens, places, axis=0))
  assert_same_bits(moved, np.roll(group_of_chunks(tokens), places, axis=0))


@pytest.mark.parametrize("place", range(GROUP))
def test_a_chunk_has_its_bits_beside_any_others(group_of_chunks, place):
  tokens, others = some_tokens(0), some_tokens(1)
  others[place] = tokens[place]
  expected = group_of_chunks(tokens)[place]
  assert_same_bits(group_of_chunks(others)[place], expected)


@pytest.mark.parametrize("rung", RUNGS[:-1])
def test_a_chunk_has_its_bits_on_every_rung(group_of_chunks, rung):
  tokens = some_tokens(0)
  groups = [group_of_chunks(x) for x in np.split(tokens, GROUP // rung)]
  assert_same_bits(np.concatenate(groups), group_of_chunks(tokens))
