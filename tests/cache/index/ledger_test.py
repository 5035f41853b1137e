"""Numbers are free, leased or owned, and never two of these."""

import pytest

from sparse_prefix_jax.cache.index import Budget, CapacityError
from sparse_prefix_jax.cache.index.ledger import Ledger, Numbers


def test_numbers_that_came_back_are_given_out_first():
  numbers = Numbers("page")
  assert numbers.lease(3) == (0, 1, 2)
  numbers.give_back([1])
  assert numbers.lease(2) == (1, 3)
  assert numbers.held == 4 and numbers.free == ()


def test_a_number_goes_from_leased_to_owned_to_free():
  numbers = Numbers("slot")
  (number,) = numbers.lease(1)
  numbers.adopt(number)
  assert numbers.held == 1 and not numbers.leased
  numbers.give_back([number])
  assert numbers.held == 0 and numbers.free == (number,)


@pytest.mark.parametrize(
  ("numbers", "message"),
  [([0, 0], "slot 0 is named twice"), ([0, 5], "slot 5 is not leased")],
)
def test_freeing_checks_everything_first(numbers, message):
  ledger = Ledger(Budget(100, slot_bytes=1, page_bytes=1))
  ledger.lease(2, 2)
  with pytest.raises(ValueError, match=message):
    ledger.free(numbers, [0])
  with pytest.raises(ValueError, match="page 2 is not leased"):
    ledger.free([0], [2])
  assert ledger.slots.held == ledger.pages.held == 2
  ledger.free([0, 1], [0, 1])
  assert ledger.slots.held == ledger.pages.held == 0


def test_a_shortage_says_what_there_is():
  ledger = Ledger(Budget(100, slot_bytes=30, page_bytes=10, slots=3))
  ledger.lease(1, 2)
  ledger.require_possible(1, 2)
  with pytest.raises(CapacityError) as error:
    ledger.require_possible(1, 3)
  assert str(error.value) == (
    "cannot reserve 1 slots and 3 pages (60 bytes): running sequences hold 1 "
    "slots and 2 pages (50 bytes) of a capacity of 100 bytes; release "
    "sequences, or make a larger cache."
  )
