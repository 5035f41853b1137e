import numpy as np
import pytest

from sparse_prefix_jax.placement import PlacementPolicy


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    ({"name": "lru"}, "placement must be one of no_cache, last, block,"),
    (
      {"name": "conditional:2"},
      "got 'conditional:2'; the budget is given apart, not after a colon",
    ),
    ({"name": "block"}, "placement block needs a budget: tokens between"),
    ({"name": "last", "budget": 3}, "placement last takes no budget, got 3"),
    ({"name": "block", "budget": 0}, "must be at least 1, got 0"),
    ({"name": "dp", "budget": -1}, "must be at least 0, got -1"),
    ({"name": "sqrt", "chunk": 0}, "chunk and every must be at least 1"),
    ({"name": "sqrt", "decay": 0.0}, "decay must be in"),
    ({"name": "sqrt", "replan": "never"}, "replan must be one of frozen,"),
  ],
)
def test_bad_policies_are_refused(arguments, sentence):
  with pytest.raises(ValueError, match=sentence):
    PlacementPolicy(**arguments)


@pytest.mark.parametrize(
  "field, value",
  [
    *(("budget", 2.5), ("budget", "3"), ("chunk", 1.5), ("every", 2.0)),
    *(("budget", True), ("chunk", True), ("every", np.True_)),
  ],
)
def test_numbers_that_are_no_integers_are_refused(field, value):
  """The type check of the tests would refuse them in the constructor."""
  policy = PlacementPolicy("dp", 2)
  object.__setattr__(policy, field, value)
  with pytest.raises(ValueError, match=f"{field} must be an integer, got "):
    policy.__post_init__()


def test_a_bool_is_no_decay():
  policy = PlacementPolicy("optimal", 1)
  object.__setattr__(policy, "decay", True)
  with pytest.raises(ValueError, match=r"decay must be in \(0, 1\], got True"):
    policy.__post_init__()


@pytest.mark.parametrize("name", [["last"], None, 3])
@pytest.mark.usefixtures("unchecked_types")
def test_names_that_are_no_texts_are_refused(name):
  with pytest.raises(ValueError, match="placement must be one of no_cache"):
    PlacementPolicy(name)
  with pytest.raises(ValueError, match="decay must be in"):
    PlacementPolicy("sqrt", decay="fast")


def test_conditional_asks_for_a_finite_number():
  assert PlacementPolicy("conditional", 0.5).budget == 0.5
  for budget in (float("nan"), float("inf")):
    with pytest.raises(ValueError, match="budget must be a finite number, got"):
      PlacementPolicy("conditional", budget)
  with pytest.raises(ValueError, match=r"must be at least 0, got -0\.5"):
    PlacementPolicy("conditional", -0.5)
  with pytest.raises(ValueError, match=r"budget must be an integer, got 0\.5"):
    PlacementPolicy("optimal", 0.5)


def test_budgets_of_conditional_are_real_numbers():
  for budget in (2, 0.5, 10**400):
    assert PlacementPolicy("conditional", budget).budget == budget
  for budget in (True, float("nan"), float("inf")):
    with pytest.raises(ValueError, match="budget must be a finite number"):
      PlacementPolicy("conditional", budget)
