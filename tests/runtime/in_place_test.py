"""Pools keep their order in memory; on a CPU any order can be asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from sparse_prefix_jax import PrefixCache, decode, prefill
from sparse_prefix_jax.contract.bits import differing_bits, poison
from sparse_prefix_jax.kernels.mosaic_tpu import fit
from sparse_prefix_jax.runtime import in_place
from sparse_prefix_jax.runtime.pools import allocate
from tests.models_for_tests import last_placement, small_model

TURNED = (0, 1, 3, 2)
"""An order that is nobody's default."""


def here():
  return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def like_a_tpu(monkeypatch):
  """This machine passes for a TPU; its kernels want pools of [s ...] turned."""
  monkeypatch.setattr(in_place, "_on_tpu", lambda x: True)
  monkeypatch.setattr(
    fit, "order_of_pool", lambda shape, _: TURNED if len(shape) == 4 else None
  )


def order(x):
  return x.format.layout.major_to_minor


def turned(shape, value=0.0):
  return jax.jit(
    lambda: jnp.full(shape, value), out_shardings=Format(Layout(TURNED), here())
  )()


def put(pools, slot):
  return {"sum": pools.sum()}, pools.at[slot].add(1.0)


@pytest.mark.parametrize(
  ("shape", "dtype", "expected"),
  [
    ((9, 8, 64, 64), jnp.float32, (0, 1, 2, 3)),
    ((9, 64, 2, 192), jnp.bfloat16, (0, 1, 2, 3)),
    ((9, 64, 3, 64), jnp.bfloat16, (0, 2, 1, 3)),
    ((9, 64, 1, 64), jnp.float32, (0, 2, 1, 3)),
    ((9, 8, 128, 128), jnp.float32, None),
    ((9, 8, 16, 32), jnp.float32, None),
    ((9, 3, 64), jnp.float32, None),
  ],
)
def test_a_tpu_is_asked_for_an_order_where_heads_do_not_fill_its_lanes(
  shape, dtype, expected
):
  assert fit.order_of_pool(shape, dtype) == expected
  found = in_place.kernel_format(shape, dtype, here())
  assert found == (expected and Format(Layout(expected), here()))


@pytest.mark.usefixtures("like_a_tpu")
def test_a_program_returns_pools_in_the_order_in_which_they_came():
  program = in_place.PoolProgram(put, lambda pools: (None, pools))
  shape = 4, 2, 8, 16
  cases = (jnp.zeros(shape), (0, 1, 2, 3)), (turned(shape), TURNED)
  for pools, expected in cases:
    for step in range(3):
      taken = pools
      out, pools = program(pools, 2)
      assert taken.is_deleted()
      assert order(pools) == expected
      assert out["sum"] == step * 2 * 8 * 16
    np.testing.assert_array_equal(pools[:, 0, 0, 0], [0, 0, 3, 0])
  assert program._cache_size() == 2


@pytest.mark.usefixtures("like_a_tpu")
def test_the_order_is_part_of_the_program():
  program = in_place.PoolProgram(put, lambda pools: (None, pools))
  shape = jax.ShapeDtypeStruct(
    (512, 8, 64, 64), jnp.float32, sharding=Format(Layout(TURNED), here())
  )
  lowered = program.lower(shape, np.int32(0))
  assert lowered.as_text().count('mhlo.layout_mode = "{2,3,1,0}"') == 2
  memory = lowered.compile().memory_analysis()
  assert memory is not None
  assert memory.alias_size_in_bytes == 512 * 8 * 64 * 64 * 4


@pytest.mark.usefixtures("like_a_tpu")
def test_traced_pools_are_left_to_the_program_around():
  program = in_place.PoolProgram(put, lambda pools: (None, pools))
  _, pools = jax.jit(lambda pools: program(pools, 1))(turned((4, 2, 8, 16)))
  assert order(pools) == (0, 1, 2, 3)


def test_nothing_is_asked_of_a_device_that_is_no_tpu():
  pools = allocate(small_model(), slots=3, pages=2)
  assert not any(leaf.committed for leaf in jax.tree.leaves(pools))


def test_no_layout_is_asked_for_of_a_device_that_is_no_tpu():
  """Pools that somebody has placed are no exception."""
  pools = jax.device_put(jnp.zeros((4, 2, 8, 16)), here())
  assert pools.committed
  program = in_place.PoolProgram(put, lambda pools: (None, pools))
  plain = jax.jit(put, donate_argnames="pools")
  text = program.lower(pools, 2).as_text()
  assert text == plain.lower(pools, 2).as_text()
  assert "layout_mode" not in text
  with pytest.warns(UserWarning, match="donated"):  # as of any jitted function
    _, each = jax.vmap(lambda slot: program(pools, slot))(jnp.arange(4))
  np.testing.assert_array_equal(each[:, :, 0, 0, 0], np.eye(4))


def test_arguments_are_taken_by_position():
  program = in_place.PoolProgram(put, lambda pools: (None, pools))
  pools = jnp.zeros((4, 2, 8, 16))
  for call in (program, program.lower, program.trace):
    with pytest.raises(TypeError, match="`pools` is argument 1; given are 0"):
      call()
    with pytest.raises(TypeError, match="unexpected keyword argument 'slot'"):
      call(pools, slot=2)


@pytest.mark.usefixtures("like_a_tpu")
def test_every_program_of_a_model_keeps_the_order_of_its_pools():
  model = small_model()
  cache = PrefixCache(model, capacity=1 << 20, placement=last_placement())

  def check():
    for x in jax.tree.leaves(cache.pools):
      assert (order(x) == TURNED) == (x.ndim == 4)

  check()
  out = prefill(model, cache, [range(40), range(17)])
  check()
  poison(cache)
  check()
  twin = cache.fork(out.sequences[0])
  check()
  decode(model, cache, [twin], [3])
  check()


def test_another_order_in_memory_changes_no_result(request):
  def run():
    model = small_model()
    cache = PrefixCache(model, capacity=1 << 20, placement=last_placement())
    orders = {order(x) for x in jax.tree.leaves(cache.pools)}
    out = prefill(model, cache, [range(40)])
    cache.release(out.sequences)
    out = prefill(model, cache, [range(50)])
    assert out.reports[0].resumed == 32
    decoded = decode(model, cache, out.sequences, [3])
    return orders, (out.logits[0], decoded.logits[0])

  orders, expected = run()
  assert TURNED not in orders
  request.getfixturevalue("like_a_tpu")
  orders, results = run()
  assert TURNED in orders
  for x, y in zip(results, expected, strict=True):
    assert differing_bits(x, y) == 0
