"""One token of matrix states on TPU: interpreted, and lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule_projected_step,
)
from sparse_prefix_jax.kernels.implementations import Device, DoesNotFit
from sparse_prefix_jax.kernels.mosaic_tpu.heads_step import step_implementation
from sparse_prefix_jax.kernels.mosaic_tpu.step import StepConfig
from tests.kernels.devices import TPUS, lowered
from tests.kernels.matrix_suite import MatrixSuite, each_operation, operation_at
from tests.kernels.mosaic_tpu.suite import INTERPRET, assert_no_race
from tests.kernels.step_suite import DecayingStepSuite
from tests.trees import assert_same_bits

ONE_CORE, TWO_CORES = (Device("tpu", f"TPU {x}") for x in ("v5 lite", "v5p"))


class Steps(MatrixSuite, DecayingStepSuite):
  """The steps of the recurrences on matrix states, in the interpreter."""

  tokens = 8
  implementation = StepConfig(interpret=INTERPRET)

  def after_each(self):
    assert_no_race()


class TestOfWidth64(Steps):
  # One step to a row: two key heads, of two value heads each.
  usual = ("gated_delta_rule",)
  sizes, tokens = (2, 4, 64, 64), 3
  implementation = StepConfig(interpret=INTERPRET, block=4)


@pytest.mark.slow_kernels
class TestOfSharedKeyHeads(Steps):
  # Four steps to a row, and two to a key head.
  sizes, dtype = (2, 8, 64, 64), "bfloat16"
  implementation = StepConfig(interpret=INTERPRET, block=2)


@pytest.mark.slow_kernels
class TestOfTwoCores(Steps):
  # Each has two steps to a row.
  sizes = (4, 4, 64, 64)
  implementation = StepConfig(interpret=INTERPRET, block=1, cores=2)


@pytest.mark.slow_kernels
class TestOfMamba2(Steps):
  sizes, dtype = (1, 6, 128, 64), "bfloat16"
  implementation = StepConfig(interpret=INTERPRET, block=6)


@pytest.mark.slow_kernels
class TestOfWidth128(Steps):
  sizes, dtype = (3, 3, 128, 128), "bfloat16"
  implementation = StepConfig(interpret=INTERPRET, block=3)


@pytest.mark.slow_kernels
class TestOfWidth256(Steps):
  sizes, dtype = (1, 1, 256, 256), "bfloat16"


def test_blocks_and_cores_change_no_bit():
  operation = operation_at("kimi_delta_attention", (2, 4, 64, 64))
  inputs = operation.tokens(0, 2)
  pool = np.stack([operation.initial_state(x) for x in range(3)])
  found = []
  for block, cores in ((1, 1), (2, 2), (4, 1)):
    config = StepConfig(interpret=INTERPRET, block=block, cores=cores)
    slots = np.array([2, ZERO]), np.array([NONE, 1])
    step = jax.jit(functools.partial(operation.step, implementation=config))
    found.append(jax.tree.map(np.asarray, step(*inputs, pool, *slots)))
    assert_no_race()
  for again in found[1:]:
    assert_same_bits(again, found[0])
  assert_same_bits(found[0][1][::2], pool[::2])


def arguments(name, sizes=(2, 4, 128, 128), dtype="bfloat16", b=3):
  """Those of one step from nothing."""
  operation = operation_at(name, sizes, dtype)
  inputs = [
    jnp.zeros((b, *x.shape[1:]), x.dtype) for x in operation.tokens(0, 1)
  ]
  slots = jnp.arange(b)
  pool = jnp.zeros((9, *operation.slot), operation.pool_dtype)
  return operation.step, (*inputs, pool, slots, slots)


@each_operation
@pytest.mark.parametrize("kind", TPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_picked_and_lowers(dtype, kind, name):
  take_step, given = arguments(name, dtype=dtype)
  program = lowered(take_step, *given, kind=kind)
  assert program.count("tpu_custom_call") == 1 and f"{name}_step" in program


@pytest.mark.parametrize(
  ("sizes", "fits"),
  [
    ((1, 1, 1024, 1024), False),
    ((1, 1, 1024, 768), True),
    ((1, 1, 512, 1024), True),
    ((16, 16, 256, 256), True),
    ((128, 128, 64, 64), True),
  ],
)
def test_a_head_that_has_no_room_is_left_to_xla(sizes, fits):
  """As the compiler found on a v5e."""
  take_step, given = arguments("gated_delta_rule", sizes)
  program = lowered(take_step, *given, kind="TPU v5 lite")
  assert ("tpu_custom_call" in program) == fits


def test_no_product_is_made_by_a_matrix_unit():
  take_step, given = arguments("gated_delta_rule")
  config = StepConfig(interpret=INTERPRET, block=4)
  run = functools.partial(take_step, implementation=config)
  assert "dot_general" not in str(jax.make_jaxpr(run)(*given))


@pytest.mark.parametrize(
  ("device", "heads", "widths", "config"),
  [
    (ONE_CORE, (4, 8), (64, 64), StepConfig(block=8)),
    (ONE_CORE, (16, 32), (128, 128), StepConfig(block=16)),
    (ONE_CORE, (1, 48), (128, 64), StepConfig(block=16)),
    (ONE_CORE, (5, 15), (128, 128), StepConfig(block=15)),
    (ONE_CORE, (16, 16), (256, 256), StepConfig(block=4)),
    (ONE_CORE, (1, 7), (256, 256), StepConfig(block=1)),
    (ONE_CORE, (2, 2), (512, 1024), StepConfig(block=1)),
    (TWO_CORES, (16, 32), (128, 128), StepConfig(block=16, cores=2)),
    (TWO_CORES, (2, 4), (128, 128), StepConfig(block=2, cores=2)),
    (TWO_CORES, (3, 3), (128, 128), StepConfig(block=3)),
  ],
)
def test_a_step_takes_as_many_heads_as_are_worth_it(
  device, heads, widths, config
):
  found = set()
  for b in (1, 16):  # how many rows there are must not matter
    k, v = (jnp.zeros((b, *x)) for x in zip(heads, widths, strict=True))
    found.add(step_implementation("any").heuristic(device, k, k, v))
  assert found == {config}


@pytest.mark.parametrize(
  ("sizes", "config", "reason"),
  [
    ((1, 1, 32, 64), {}, "widths 32 and 64 are not multiples of 64"),
    ((2, 4, 64, 64), {"block": 0}, "block 0 does not divide 4 value heads"),
    ((2, 6, 64, 64), {"block": 2}, "block 2 does not divide 6 value heads of"),
    ((1, 256, 64, 64), {"block": 256}, "takes 128 value heads of a step at"),
    ((4, 4, 64, 64), {"block": 2, "cores": 3}, "3 cores do not divide 2"),
    ((32, 32, 256, 256), {"block": 32}, "states of a step take 8388608 bytes"),
  ],
)
def test_what_does_not_fit_is_refused(sizes, config, reason):
  take_step, given = arguments("gated_delta_rule", sizes, b=1)
  config = StepConfig(interpret=INTERPRET, **config)
  with pytest.raises(DoesNotFit, match=f"mosaic_tpu: {reason}"):
    take_step(*given, implementation=config)


def test_other_dtypes_are_refused():
  def refusal(dtype="float32", gates="float32", states="float32"):
    x, gate = jnp.zeros((1, 1, 64), dtype), jnp.zeros((1, 1), gates)
    pool, slots = jnp.zeros((1, 1, 64, 64), states), jnp.zeros(1, jnp.int32)
    return step_implementation("any").refusal(
      ONE_CORE, StepConfig(), x, x, x, gate, pool, slots, slots
    )

  assert refusal() is None
  told = "inputs of float16 are neither float32 nor bfloat16"
  assert refusal(dtype="float16") == told
  told = "gates are bfloat16 and must be float32"
  assert refusal(gates="bfloat16") == told
  told = "states are bfloat16 and must be float32"
  assert refusal(states="bfloat16") == told


def projected_step(**options):
  return functools.partial(
    gated_delta_rule_projected_step,
    key_heads=1,
    beta_scale=2.0,
    dtype="bfloat16",
    precision="highest",
    **options,
  )


def projections(b):
  """Projections of b rows, of two value heads for one key head."""
  random = np.random.default_rng(0)

  def normal(*shape):
    return random.standard_normal(shape, np.float32)

  layer = normal(4, 96), normal(2), normal(2), normal(6, 2, 64, 64)
  return normal(b, 256), normal(b, 96), *layer


def test_the_step_of_a_layer_is_that_of_its_heads():
  given, slots = projections(2), (np.array([ZERO, 3]), np.array([1, NONE]))
  outs = []
  for choice in (StepConfig(interpret=INTERPRET, block=2), "xla"):
    step = jax.jit(projected_step(implementation=choice))
    outs.append(jax.tree.map(np.asarray, step(*given, *slots)))
  for found, expected in zip(*outs, strict=True):
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
  assert_same_bits(outs[0][1][2:], given[-1][2:])


def test_a_layer_on_a_tpu_takes_the_kernel():
  slots = jnp.arange(2)
  text = lowered(projected_step(), *projections(2), slots, slots, kind=TPUS[0])
  assert text.count("tpu_custom_call") == 1
  assert "gated_delta_rule_step" in text
