"""scan_with_capture: any cell, any subset, no bit changed, differentiable."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax.layers import scan_with_capture
from tests.trees import assert_same_bits

STEPS = 6


def cell(carry, x):
  """A small recurrent network with a carry of two dtypes."""
  hidden = jnp.tanh(carry["hidden"] * 0.7 + x["a"] @ carry["weight"])
  count = carry["count"] + x["b"]
  carry = {"hidden": hidden, "count": count, "weight": carry["weight"]}
  return carry, hidden.sum()


jit_cell = jax.jit(cell)


def inputs():
  a, w, h = (
    jax.random.normal(jax.random.key(seed), shape)
    for seed, shape in enumerate([(STEPS, 3), (3, 4), (4,)])
  )
  carry = {"hidden": h, "count": jnp.int32(10), "weight": w}
  return carry, {"a": a, "b": jnp.arange(STEPS)}


def plain(steps):
  """The carry after so many steps and the outputs, step by step."""
  carry, xs = inputs()
  ys = []
  for step in range(steps):
    carry, y = jit_cell(carry, jax.tree.map(lambda x, t=step: x[t], xs))
    ys.append(y)
  return carry, np.array(ys)


@pytest.mark.parametrize("capture_at", [(), (6,), (4, 1, 6), range(1, 7)])
def test_captures_the_carries_asked_for_in_the_order_asked(capture_at):
  out = scan_with_capture(cell, *inputs(), capture_at)
  carry, ys = plain(STEPS)
  stacked = jax.eval_shape(
    lambda: jax.tree.map(lambda x: jnp.stack([x] * 6)[: len(capture_at)], carry)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(out.captured, stacked)
  np.testing.assert_allclose(out.ys, ys, rtol=1e-5)
  for i, steps in enumerate(capture_at):
    expected, _ = plain(steps)
    assert out.captured["count"][i] == expected["count"]
    np.testing.assert_allclose(
      out.captured["hidden"][i], expected["hidden"], rtol=1e-5
    )


def test_capture_changes_no_bit():
  run = jax.jit(
    lambda carry, xs, at: scan_with_capture(cell, carry, xs, at),
    static_argnums=2,
  )
  without, every = run(*inputs(), ()), run(*inputs(), tuple(range(1, 7)))
  some = run(*inputs(), (4, 2))
  for out in (every, some):
    assert_same_bits((out.carry, out.ys), (without.carry, without.ys))
  order = np.array([3, 1])
  at = jax.tree.map(lambda x: x[order], every.captured)
  assert_same_bits(some.captured, at)


def test_resumed_from_a_captured_carry_has_the_bits_of_cold():
  (carry, xs), steps = inputs(), 4
  run = jax.jit(lambda carry, xs: scan_with_capture(cell, carry, xs, (1, 2)))
  cold = jax.jit(
    lambda carry, xs: scan_with_capture(cell, carry, xs, (steps,))
  )(carry, xs)
  at = jax.tree.map(lambda x: x[0], cold.captured)
  rest = run(at, jax.tree.map(lambda x: x[steps:], xs))
  assert_same_bits((rest.carry, rest.ys), (cold.carry, cold.ys[steps:]))


def test_traced_positions_share_one_program():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def run(at):
    return scan_with_capture(cell, *inputs(), at).captured

  for at in ([3, 1], [1, 6]):
    got = run(jnp.array(at))
    for i, steps in enumerate(at):
      expected, _ = plain(steps)
      assert got["count"][i] == expected["count"]
      np.testing.assert_allclose(
        got["hidden"][i], expected["hidden"], rtol=1e-5
      )
  outside = run(jnp.array([7, 2]))
  assert not outside["hidden"][0].any()
  assert outside["hidden"][1].any()


def test_gradient_flows_through_captured_carries():
  carry, xs = inputs()
  floats = {name: carry[name] for name in ("hidden", "weight")}

  def loss(floats, captured_of):
    captured = captured_of({**floats, "count": carry["count"]})
    return sum((i + 1.0) * (x**3).sum() for i, x in enumerate(captured))

  def ours(carry):
    out = scan_with_capture(cell, carry, xs, (5, 2))
    return [*out.captured["hidden"], out.ys, out.carry["hidden"]]

  def unrolled(carry):
    after, ys = [], []
    for step in range(STEPS):
      carry, y = cell(carry, jax.tree.map(lambda x, t=step: x[t], xs))
      after.append(carry["hidden"])
      ys.append(y)
    return [after[4], after[1], jnp.stack(ys), after[-1]]

  got, expected = (jax.grad(loss)(floats, f) for f in (ours, unrolled))
  for name in floats:
    assert np.abs(expected[name]).max() > 1
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at", [(0,), (7,), (3, -1), (2, 100)])
def test_positions_outside_the_scan_are_refused(at):
  wrong = next(p for p in at if not 1 <= p <= STEPS)
  message = f"capture_at holds {wrong}; .* from 1 to 6"
  with pytest.raises(ValueError, match=message):
    scan_with_capture(cell, *inputs(), at)


@pytest.mark.parametrize("at", [(2, 2), np.array([1, 3, 1])])
def test_repeated_positions_are_refused(at):
  with pytest.raises(ValueError, match=r"capture_at is .* may stand once"):
    scan_with_capture(cell, *inputs(), at)


@pytest.mark.parametrize(
  ("at", "message"),
  [
    ((2.0, 2.9), "dtype float64; positions are integers"),
    (np.array([2.9]), "dtype float64; positions are integers"),
    (np.arange(STEPS) == 2, "dtype bool; positions are integers"),
    (("2",), "dtype .*U1; positions are integers"),
    (np.array([[1, 2]]), r"shape \(1, 2\); it must have one axis"),
    (np.array(3), r"shape \(\); it must have one axis"),
  ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_list_of_integers_is_refused(at, message):
  with pytest.raises(ValueError, match=f"^capture_at has {message}") as refused:
    scan_with_capture(cell, *inputs(), at)
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool])
@pytest.mark.usefixtures("unchecked_types")
def test_traced_positions_are_integers_too(dtype):
  run = jax.jit(lambda at: scan_with_capture(cell, *inputs(), at))
  with pytest.raises(ValueError, match="capture_at has dtype"):
    run(jnp.ones(2, dtype))


@pytest.mark.parametrize(
  ("xs", "message"),
  [
    (None, r"xs holds arrays of shapes \[\]; .* at least one"),
    ({"a": 1.0}, r"xs holds arrays of shapes \[\(\)\]; .* axis of steps"),
    ((np.ones(2), np.ones(3)), r"xs has \[2, 3\] steps; .* as many"),
  ],
)
def test_inputs_without_a_number_of_steps_are_refused(xs, message):
  with pytest.raises(ValueError, match=message):
    scan_with_capture(lambda c, x: (c, c), jnp.zeros(2), xs, (1,))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_python_number_is_a_carry_as_in_a_scan(dtype):
  def step(carry, x):
    return carry + x, carry

  xs = jnp.arange(4, dtype=dtype)
  expected = jnp.asarray(jax.lax.scan(step, 0.5, xs)[0])
  out = scan_with_capture(step, 0.5, xs, (2, 4))
  assert out.carry.dtype == expected.dtype == out.captured.dtype == dtype
  assert out.carry == expected
  assert out.captured.tolist() == [1.5, 6.5]
  constant = scan_with_capture(lambda c, x: (2.0, x), 0.5, xs, (1,))
  assert constant.captured.tolist() == [2.0]


def test_of_equal_traced_positions_the_first_captures():
  run = jax.jit(
    lambda at: scan_with_capture(
      lambda c, x: (c + x, x), jnp.float32(0), jnp.arange(4.0), at
    )
  )
  assert run(jnp.array([3, 2, 3])).captured.tolist() == [3.0, 1.0, 0.0]


def test_capture_writes_into_one_buffer_of_the_captured_carries():
  """No carry per step: temporaries do not grow with the steps."""

  def temporaries(steps):
    carry = jnp.zeros((64, 1024))
    xs = jnp.zeros(steps)
    run = jax.jit(
      lambda c, xs: scan_with_capture(lambda c, x: (c + x, x), c, xs, (1, 3))
    )
    stats = run.lower(carry, xs).compile().memory_analysis()
    return stats.temp_size_in_bytes

  carry_bytes = 64 * 1024 * 4
  assert temporaries(256) - temporaries(8) < carry_bytes


def test_a_cell_of_flax_captures_m_states_at_the_price_of_m_states():
  width, steps = 256, 64
  gru = nnx.GRUCell(8, width, rngs=nnx.Rngs(0))
  carry = gru.initialize_carry((2, 8), nnx.Rngs(1))
  xs = jax.random.normal(jax.random.key(0), (steps, 2, 8))
  state = carry.nbytes

  def compiled(at):
    run = jax.jit(lambda c, xs: scan_with_capture(gru, c, xs, at))
    return run.lower(carry, xs).compile()

  def costs(at):
    stats = compiled(at).memory_analysis()
    return np.array([stats.output_size_in_bytes, stats.temp_size_in_bytes])

  one, many = costs((64,)), costs(tuple(range(1, 33)))
  pointers = 64  # the results are a tuple
  assert abs(many - one)[0] - 31 * state <= pointers
  assert (many - one)[1] <= 32 * state
  out = compiled((40, 3))(carry, xs)
  for i, end in enumerate((40, 3)):
    at = jax.jit(lambda c, xs: scan_with_capture(gru, c, xs, ()))(
      carry, xs[:end]
    )
    assert_same_bits(out.captured[i], at.carry)
    assert_same_bits(out.ys[:end], at.ys)
