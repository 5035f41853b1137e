import pytest

from benchmarks import policy_constants
from sparse_prefix_jax.placement.worth import demand, fitting

AS_IT_IS = policy_constants.AS_IT_IS


def test_a_variant_changes_one_constant_while_it_lasts():
  before, guess = demand._FRAILTY, fitting._FIRST_GUESS
  with policy_constants.variant("frailty x 2"):
    assert 2 * before == demand._FRAILTY
    assert fitting._FIRST_GUESS is guess
  assert before == demand._FRAILTY
  with policy_constants.variant("first guess x 0.5"):
    assert (guess / 2 == fitting._FIRST_GUESS).all()
  with policy_constants.variant(AS_IT_IS):
    assert before == demand._FRAILTY


def test_every_constant_is_halved_and_doubled():
  names = policy_constants.variants()
  assert names[0] == AS_IT_IS and len(names) == 11
  for name in names:
    with policy_constants.variant(name):
      assert demand._FRAILTY > 0


def test_each_trace_is_left_out_in_turn():
  percents = {
    AS_IT_IS: {"a": 50.0, "b": 60.0, "c": 70.0},
    "more": {"a": 40.0, "b": 62.0, "c": 71.0},
    "less": {"a": 53.0, "b": 59.0, "c": 69.0},
  }
  found = policy_constants.left_out(percents)
  assert [row["chosen"] for row in found.values()] == ["more", "less", "less"]
  assert found["a"]["lead"] == -10 and found["a"]["lead_on_the_others"] == 1.5
  assert found["b"]["lead"] == pytest.approx(-1)
