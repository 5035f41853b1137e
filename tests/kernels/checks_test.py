"""Shapes that do not belong together get one sentence."""

import dataclasses
import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.checks import (
  check_heads,
  check_pool,
  check_shapes,
)
from sparse_prefix_jax.kernels.chunks import Chunks

CHUNKS = Chunks(*jnp.zeros((5, 2), jnp.int32))
OPERATIONS = (
  *("gated_delta_rule", "kimi_delta_attention", "linear_attention"),
  *("diagonal_scan", "causal_conv1d", "lattice_attention"),
)


def check(**arrays):
  return check_shapes("sum", CHUNKS, **arrays)


def test_letters_have_one_size():
  x, y = jnp.zeros((2, 3)), jnp.zeros((3, 4))
  assert check(x=(x, "n c"), y=(y, "c d")) == {"n": 2, "c": 3, "d": 4}


@pytest.mark.parametrize(
  ("shape", "sentence"),
  [
    ((2, 3, 1), r"x of sum has shape \(2, 3, 1\); it must be \[n c\]"),
    ((2, 1), r"x of sum has shape \(2, 1\) .* c is 3 elsewhere"),
    ((1, 3), "n is 1 elsewhere"),
    ((2, 0), "c is 3 elsewhere"),
  ],
)
def test_what_would_be_broadcast_is_refused(shape, sentence):
  with pytest.raises(ValueError, match=sentence):
    check(y=(jnp.zeros(3), "c"), x=(jnp.zeros(shape), "n c"))


def test_empty_axes_are_refused():
  with pytest.raises(ValueError, match="sum has no s: that axis is empty"):
    check(pool=(jnp.zeros((0, 3)), "s c"))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("kind", [">f4", ">i4", np.longdouble])
def test_numbers_that_jax_does_not_have_are_refused(kind):
  """Bytes in another order, as big-endian files have them; and 128 bits."""
  with pytest.raises(ValueError, match=r"x of sum is .*; JAX has no such num"):
    check(x=(np.zeros((2, 3), kind), "n c"))


def test_heads_that_do_not_share_and_odd_chunks_are_refused():
  pool = jnp.zeros((1, 3, 2, 2))
  with pytest.raises(ValueError, match="3 value heads for 2 key heads"):
    check_heads("rule", {"h": 2, "hv": 3, "c": 16}, pool)
  with pytest.raises(ValueError, match="chunks of 24 tokens"):
    check_heads("rule", {"h": 1, "hv": 3, "c": 24}, pool)


def test_a_pool_of_another_dtype_is_refused():
  with pytest.raises(ValueError, match=r"pool of rule is bfloat16; .* float32"):
    check_pool("rule", jnp.zeros(1, jnp.bfloat16), jnp.float32)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_sizes_worth_trying_are_fields_of_the_configs(operation):
  api = importlib.import_module(f"sparse_prefix_jax.kernels.{operation}.api")
  tunable = 0
  for implementation in api.IMPLEMENTATIONS:
    config = implementation.config
    fields = {field.name for field in dataclasses.fields(config)}
    assert set(config.tunable) <= fields - {"interpret"}
    tunable += len(config.tunable)
  assert tunable >= 2  # of Mosaic GPU and of Mosaic TPU
