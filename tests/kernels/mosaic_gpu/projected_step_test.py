"""The step of the gated delta rule from projections, in the interpreter."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule_projected_step,
)
from sparse_prefix_jax.kernels.implementations import DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels.devices import HOPPER, lowered, traced_for
from tests.kernels.mosaic_gpu.suite import interpreted
from tests.trees import assert_same_bits

KEY_HEADS, HEADS, WIDTH = 1, 2, 64


def arguments(b, slots=6, width=WIDTH, inputs=256):
  """Projections of b rows; their gates are far from zero."""
  random = np.random.default_rng(0)
  columns = 2 * KEY_HEADS * width + HEADS * WIDTH
  mixed = random.standard_normal((b, columns), np.float32)
  x = random.standard_normal((b, inputs), np.float32)
  weight = random.standard_normal((2 * HEADS, inputs), np.float32)
  weight *= 10 * inputs**-0.5
  rates, bias = random.standard_normal((2, HEADS), np.float32)
  pool = random.standard_normal((slots, HEADS, width, WIDTH), np.float32)
  return mixed, x, weight, rates, bias, pool


def step(given, read, write, implementation, **options):
  run = functools.partial(
    gated_delta_rule_projected_step,
    key_heads=KEY_HEADS,
    beta_scale=options.get("beta_scale", 1.0),
    dtype=options.get("dtype", "float32"),
    precision="highest",
    implementation=implementation,
  )
  with traced_for(HOPPER):
    return jax.tree.map(
      np.asarray, jax.jit(run)(*given, np.array(read), np.array(write))
    )


@pytest.mark.parametrize(
  ("beta_scale", "inputs"),
  [(1.0, 256), (2.0, 2048), (1.0, 96), (1.0, 4096)],
  ids=["one_piece", "two_pieces", "narrow", "wide"],
)
def test_equals_the_heads_and_their_step(beta_scale, inputs):
  given = arguments(2, inputs=inputs)
  kernel = interpreted(MosaicGpuConfig(columns=64))
  slots = [ZERO, 3], [1, NONE]
  out, pool = step(given, *slots, kernel, beta_scale=beta_scale)
  expected, after = step(given, *slots, "xla", beta_scale=beta_scale)
  assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()
  assert np.abs(pool - after).max() <= 1e-5 * np.abs(after).max()
  assert_same_bits(pool[2:], given[-1][2:])


def test_a_row_has_its_bits_alone():
  given, kernel = arguments(3), interpreted(MosaicGpuConfig(columns=64))
  out, pool = step(given, [0, 1, 2], [0, 1, 2], kernel, dtype="bfloat16")
  alone = (given[0][2:], given[1][2:], *given[2:])
  again, later = step(alone, [2], [2], kernel, dtype="bfloat16")
  assert_same_bits(again[0], out[2])
  assert_same_bits(later[2], pool[2])


@pytest.mark.parametrize(
  ("inputs", "products"), [(1024, 0), (4096, 1)], ids=["narrow", "wide"]
)
def test_a_layer_on_a_gpu_takes_it(inputs, products):
  """Gates of narrow models have no product of their own."""
  run = functools.partial(
    gated_delta_rule_projected_step,
    key_heads=KEY_HEADS,
    beta_scale=1.0,
    dtype="bfloat16",
    precision="highest",
  )
  slots = jnp.arange(2)
  given = arguments(2, inputs=inputs)
  program = lowered(run, *given, slots, slots, kind=HOPPER)
  assert "mosaic_gpu" in program
  assert program.count("dot_general") == products


def test_what_does_not_fit_is_refused():
  given = arguments(1, width=32)
  with pytest.raises(DoesNotFit, match="keys of a head, not 32"):
    step(given, [0], [0], "mosaic_gpu")


@pytest.mark.usefixtures("unchecked_types")
def test_a_pool_that_would_round_its_states_is_refused():
  *rest, pool = arguments(1)
  with pytest.raises(ValueError, match="float32"):
    step((*rest, pool.astype(jnp.bfloat16)), [0], [0], "xla")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  ("choice", "sentence"),
  [
    ({"key_heads": 0}, "at least 1"),
    ({"key_heads": True}, "at least 1"),
    ({"key_heads": 4}, "must be a multiple"),
    ({"beta_scale": "1"}, "beta_scale is '1'; it must be a finite number"),
    ({"beta_scale": None}, "beta_scale is None; it must be a finite number"),
    ({"beta_scale": math.nan}, "beta_scale is nan; it must be a finite number"),
  ],
)
def test_choices_that_no_projection_has_are_refused(choice, sentence):
  slots, choices = jnp.arange(1), {"key_heads": KEY_HEADS, "beta_scale": 1.0}
  with pytest.raises(ValueError, match=sentence):
    gated_delta_rule_projected_step(
      *map(jnp.asarray, arguments(1)),
      slots,
      slots,
      dtype="float32",
      precision="highest",
      **choices | choice,
    )


def test_columns_that_do_not_belong_together_are_refused():
  mixed, *rest = arguments(1)
  with pytest.raises(ValueError, match="must have 256 columns and 4 rows"):
    step((mixed[:, 1:], *rest), [0], [0], "xla")
