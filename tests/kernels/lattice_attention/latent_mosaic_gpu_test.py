"""Attention to latents on GPU, in the interpreter; see `mosaic_gpu/suite.py`.

Transposed operands are not what a device sees: the interpreter does not follow
them, so the kernels make transposed copies there. That the products themselves
are valid is shown by lowering, and by real compilation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.lattice_attention import (
  chunks_mosaic_gpu,
  decode_mosaic_gpu,
  latent_attention,
  latent_attention_step,
)
from sparse_prefix_jax.kernels.mosaic_gpu import transposed
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels import reference
from tests.kernels.devices import BLACKWELL, HOPPER, lowered, traced_for
from tests.kernels.lattice_attention.latent_api_test import (
  LatentSizes,
  call,
  chunk_arguments,
  step_arguments,
)
from tests.kernels.mosaic_gpu.suite import OnGpu, interpreted
from tests.kernels.packing import Job, bits

T = 100
SMALL = LatentSizes(
  chunk=64,
  heads=2,
  width=192,
  values=128,
  pages=12,
  dtype="bfloat16",
  implementation=interpreted(MosaicGpuConfig()),
)


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
  """Several programs share a head's values, and the heads of a step.

  The scores are added 64 terms at a time, as those of wider latents are.
  """
  monkeypatch.setattr(transposed, "_MOST_UNROLLED", 64)
  monkeypatch.setattr(chunks_mosaic_gpu, "_MOST_VALUES", 64)
  monkeypatch.setattr(decode_mosaic_gpu, "MOST_LATENT_HEADS", 1)
  with OnGpu().around():
    yield


def prefilled():
  """Inputs, pages, outputs and pool of one request."""
  inputs, (pages,) = SMALL.tokens(5, T)[:2], SMALL.scrambled(T)
  (out,), pool = call(
    SMALL, [Job(T)], [inputs], [pages], SMALL.free_pages(), n=2
  )
  OnGpu().after_each()
  return inputs, pages, out, pool


def test_equals_softmax_attention_with_the_bits_of_any_packing():
  inputs, pages, out, pool = prefilled()
  assert reference.relative_error(out, SMALL.expected(*inputs)) <= 1e-2
  held = pool[pages].reshape(-1, 1, SMALL.width)[:T]
  assert bits(held) == bits(inputs[1])
  others = [p for p in range(SMALL.pages) if p not in pages]
  jobs = [Job(3), Job(T - 64, start=64)]
  rest = [SMALL.tokens(6, 3)[:2], [x[64:] for x in inputs]]
  (_, again), _ = call(SMALL, jobs, rest, [others[:1], pages], pool, n=2)
  OnGpu().after_each()
  assert bits(again) == bits(out[64:])


def stepped(row, inputs, pages, pool):
  """The last token of the request, in a row beside another one."""
  (q, latent), last = inputs, T - 1
  pool = np.array(pool)
  pool[pages[-1], last % 64 :] = np.nan  # it is written by the step
  queries = np.full((3, *q.shape[1:]), np.nan, q.dtype)
  latents = np.full((3, *latent.shape[1:]), np.nan, latent.dtype)
  position, active = np.zeros(3, np.int32), np.zeros(3, bool)
  table = np.zeros((3, 8), np.int32)
  others = [p for p in range(SMALL.pages) if p not in pages]
  for place, at, own in ((row, last, pages), (1, 0, others[:1])):
    queries[place], latents[place] = q[at], latent[at]
    position[place], active[place] = at, True
    table[place, : len(own)] = own
  step = jax.jit(
    functools.partial(
      latent_attention_step,
      value_width=SMALL.values,
      implementation=SMALL.implementation,
    )
  )
  arrays = map(jnp.asarray, (queries, latents, pool, position, active, table))
  out, after = step(*arrays)
  OnGpu().after_each()
  assert bits(after[pages[-1], last % 64]) == bits(latent[last])
  return np.asarray(out[row])


def test_a_step_equals_softmax_attention_with_the_same_bits_in_any_row():
  inputs, (pages,) = SMALL.tokens(5, T)[:2], SMALL.scrambled(T)
  pool = SMALL.free_pages()
  for index, page in enumerate(pages):
    held = inputs[1][index * 64 : (index + 1) * 64]
    pool[page, : len(held)] = held
  first = stepped(0, inputs, pages, pool)
  expected = SMALL.expected(inputs[0][-1:], inputs[1], T - 1)[0]
  assert reference.relative_error(first, expected) <= 1e-2
  assert bits(stepped(2, inputs, pages, pool)) == bits(first)


@pytest.mark.parametrize("heads", [1, 32])
@pytest.mark.parametrize(
  ("operation", "arguments", "kernels"),
  [
    (latent_attention, chunk_arguments, ["latent_attention"]),
    (
      latent_attention_step,
      step_arguments,
      ["latent_attention_ranges", "latent_attention_combine"],
    ),
  ],
)
def test_is_picked_for_the_published_widths(
  operation, arguments, kernels, heads, monkeypatch
):
  monkeypatch.undo()
  attend = functools.partial(operation, value_width=512)
  text = lowered(attend, *arguments(heads=heads), kind=HOPPER)
  assert "mosaic_gpu" in text
  assert all(kernel in text for kernel in kernels)


@pytest.mark.parametrize(
  ("operation", "choices", "values", "reason"),
  [
    (latent_attention, {"dtype": jnp.float32}, 512, "takes bfloat16 only"),
    (
      latent_attention,
      {"width": 600},
      512,
      "takes latents of a mult.* not 600",
    ),
    (latent_attention, {}, 500, "takes values of a multiple .* not 500"),
    (latent_attention, {}, 320, "takes values of a multiple .* not 320"),
    (latent_attention, {}, 576, "takes values of a multiple .* not 576"),
    (latent_attention, {"width": 1088}, 512, r"takes \d+ bytes of shared"),
    (latent_attention_step, {"heads": 24}, 512, "takes a multiple of 16 .* 24"),
  ],
)
def test_says_why_it_does_not_fit(
  operation, choices, values, reason, monkeypatch
):
  monkeypatch.undo()
  step = operation is latent_attention_step
  arguments = (step_arguments if step else chunk_arguments)(**choices)
  with pytest.raises(ValueError, match=f"mosaic_gpu: {reason}"):
    operation(
      *arguments, value_width=values, implementation=SMALL.implementation
    )


def test_a_device_without_products_of_warpgroups_is_refused():
  with traced_for(BLACKWELL), pytest.raises(ValueError) as refused:
    latent_attention_step(
      *step_arguments(), value_width=512, implementation="mosaic_gpu"
    )
  assert "NVIDIA B200" in str(refused.value)
