"""Shapes of what programs take: those of the real inputs, in their order."""

import chex
import jax
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import ZERO
from sparse_prefix_jax.kernels.mosaic_tpu import fit
from sparse_prefix_jax.runtime import programs, shapes
from sparse_prefix_jax.runtime.plan import Segment, build_plan
from sparse_prefix_jax.runtime.pools import allocate
from tests.models_for_tests import small_config, small_model

CONFIG = small_config(ladder=(4,))
TURNED = (0, 1, 3, 2)


def test_a_group_is_what_a_plan_is_cut_into():
  segment = Segment(np.ones(50, np.int32), 0, ZERO, {}, 0, range(4))
  plan = build_plan(CONFIG, [segment], slots=2, pages=4)
  ((_, group),) = plan.groups(CONFIG.numerics.ladder)
  found = shapes.group_shapes(CONFIG, 4)
  chex.assert_trees_all_equal_shapes_and_dtypes(found, group)


def test_a_model_and_pools_are_those_that_are_made():
  model = small_model(ladder=(4,))
  found = shapes.model_shapes(CONFIG)
  assert found.config == model.config
  chex.assert_trees_all_equal_shapes_and_dtypes(found, programs.freeze(model))
  pools = shapes.pool_shapes(CONFIG, slots=3, pages=5)
  real = allocate(model, slots=3, pages=5)
  chex.assert_trees_all_equal_shapes_and_dtypes(pools, real)


def test_every_program_lowers_from_shapes():
  model = shapes.model_shapes(CONFIG)
  pools = shapes.pool_shapes(CONFIG, slots=3, pages=5)
  step = shapes.step_shapes(CONFIG)
  hidden, _ = jax.eval_shape(programs.decode_step, model, pools, step)
  chex.assert_shape(hidden, (CONFIG.numerics.decode_rows, CONFIG.width))
  logits = jax.eval_shape(programs.head, model, shapes.hidden_shape(CONFIG))
  chex.assert_shape(logits, (CONFIG.numerics.head_rows, CONFIG.vocab_size))
  many = CONFIG.replace(decode_rows=CONFIG.numerics.head_rows + 3)
  assert shapes.hidden_shape(many).shape[0] == many.numerics.decode_rows


@pytest.mark.parametrize("on_tpu", [False, True])
def test_on_a_tpu_pools_come_in_the_order_of_their_kernels(monkeypatch, on_tpu):
  monkeypatch.setattr(shapes, "_on_tpu", lambda: on_tpu)
  monkeypatch.setattr(
    fit, "order_of_pool", lambda shape, _: TURNED if len(shape) == 4 else None
  )
  pools = shapes.pool_shapes(CONFIG, slots=3, pages=5)
  for x in jax.tree.leaves(pools):
    layout = x.format.layout
    turned = layout is not None and layout.major_to_minor == TURNED
    assert turned == (on_tpu and x.ndim == 4)
