"""Reading fields of foreign JSON: each kind of value, each mistake."""

import math

import pytest

from sparse_prefix_jax.models.families import FAMILIES, Fields, family_of
from sparse_prefix_jax.models.families.fields import shown


def fields(**values):
  return Fields(values, "f.json")


def test_values_are_read_by_kind():
  f = fields(n=3, x=2, b=True, t=["a"], i=[5, 3, 5], o={"n": 1}, none=None)
  assert f.count("n") == 3
  assert f.number("x", least=1.0, most=2.0) == 2.0
  assert f.flag("b", False) is True
  assert f.texts("t") == ["a"]
  assert f.ids("i") == (5, 3)
  assert f.ids("n") == (3,)
  inner = f.within("o")
  assert inner is not None and inner.where == "o in f.json"
  for key in ("none", "absent"):
    assert f.count(key, 7) == 7 or key == "absent"
    assert f.number(key, 0.5, least=0.1, most=1.0) == 0.5
    assert f.texts(key) is None and f.within(key) is None
    assert f.ids(key) == ()
  f.refuse_unread(harmless=())


def test_a_flag_that_is_null_is_off():
  """Another implementation asks whether it is true, and null is not."""
  f = fields(none=None)
  assert f.flag("none", True) is False
  assert f.flag("absent", True) is True


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", [1], {}, math.nan])
def test_a_count_is_an_int_above_0(value):
  with pytest.raises(
    ValueError, match=r"^n in f.json is .*; it must be an int"
  ):
    fields(n=value).count("n")


@pytest.mark.parametrize("value", [0, -1, True, "1", [1], math.nan, math.inf])
def test_a_number_is_finite_and_above_0(value):
  with pytest.raises(ValueError, match="it must be a finite number above 0"):
    fields(x=value).number("x", least=0.1, most=1.0)


def test_only_some_values_and_their_types_are_taken():
  for value in (False, None):
    fields(a=value).only("a", False)
  for value in (0, 0.0, "", [], True):
    with pytest.raises(ValueError, match="only False can be computed"):
      fields(a=value).only("a", False)
  with pytest.raises(ValueError, match="only null can be computed"):
    fields(a=1).only("a")


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match=r"^f\.json lacks n\.$"):
    fields().count("n")
  with pytest.raises(ValueError, match=r"^n in f\.json is None; "):
    fields(n=None).count("n")


def test_what_nobody_read_is_refused_unless_it_is_harmless():
  f = fields(a=1, b=[], c={}, d=None, e=2, f=3)
  f.get("a")
  f.refuse_unread({"e"}, same={"f": 3})
  with pytest.raises(ValueError, match=r"f in f\.json is 3; this key is not"):
    f.refuse_unread({"e"}, same={"f": 4})
  with pytest.raises(ValueError, match=r"e in f\.json is 2"):
    f.refuse_unread(set())


def test_long_and_deep_values_stay_one_short_sentence():
  deep = []
  for _ in range(900):
    deep = [deep]
  for value in (deep, "x\n" * 10_000, 10**400, list(range(10_000))):
    assert len(shown(value)) < 200
    assert "\n" not in shown(value)


def test_model_types_belong_to_one_family():
  names = [name for family in FAMILIES for name in family.model_types]
  assert len(set(names)) == len(names)
  for family in FAMILIES:
    for name in family.model_types:
      assert family_of(fields(model_type=name)) is family
  for name in ("llama", None, 3, [], {}):
    with pytest.raises(
      ValueError, match=r"model_type .* qwen3_5_text, qwen3_5"
    ):
      family_of(fields(model_type=name))
