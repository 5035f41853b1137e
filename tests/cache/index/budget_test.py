"""One byte budget and three limits."""

import pytest

from sparse_prefix_jax.cache.index import Budget


@pytest.mark.parametrize(
  ("slots", "pages", "fits"),
  [(0, 0, True), (3, 1, True), (3, 2, False), (0, 5, True), (0, 6, False)],
)
def test_bytes_and_counts_limit_together(slots, pages, fits):
  budget = Budget(100, slot_bytes=30, page_bytes=10, slots=4, pages=5)
  assert budget.fits(slots, pages) is fits


def test_physical_slots_limit_where_bytes_would_not():
  budget = Budget(100, slot_bytes=0, page_bytes=0, slots=2)
  assert budget.fits(2, 10**6)
  assert not budget.fits(3, 0)


def test_bytes_count_both_kinds():
  assert Budget(0, slot_bytes=7, page_bytes=5).bytes_of(2, 3) == 29


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("capacity_bytes", -1),
    ("slot_bytes", -5),
    ("slots", -1),
    ("pages", -2),
    ("remembered_bytes", -1),
    ("learned_bytes", -1),
  ],
)
def test_a_bad_budget_is_refused(name, value):
  fields = {"capacity_bytes": 1, "slot_bytes": 1, "page_bytes": 1, name: value}
  with pytest.raises(ValueError, match=f"budget: {name} .* at least 0"):
    Budget(**fields)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("value", [2.5, float("nan"), None, "4GiB"])
def test_bytes_are_integers(value):
  with pytest.raises(ValueError, match="page_bytes must be an integer"):
    Budget(1, 1, page_bytes=value)
