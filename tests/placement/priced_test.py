import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_prefix_jax.placement import (
  CommonPrice,
  Steps,
  common_price,
  solve_placement,
  solve_priced,
)

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

WEIGHTS = st.lists(st.integers(0, 9), min_size=2, max_size=9).filter(any)


def survival_of(weights):
  return np.cumsum(np.array(weights, np.float64)[::-1])[::-1]


def saved(survival, positions, cost=range(100)):
  """The staircase under G, as the module docstring has it."""
  edges = [0, *positions]
  pairs = itertools.pairwise(edges)
  return sum((cost[s] - cost[r]) * survival[s] for r, s in pairs)


def best_by_count(survival, cost=range(100)):
  """The most that 0, 1, 2, ... states save, by trying every subset."""
  depths = range(1, survival.size)
  return [
    max(
      saved(survival, chosen, cost)
      for chosen in itertools.combinations(depths, m)
    )
    for m in range(survival.size)
  ]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(WEIGHTS, st.integers(0, 60))
def test_nothing_is_worth_more_at_the_price(weights, price):
  """Integers in float64, so that equal means equal."""
  survival = survival_of(weights)
  found = solve_priced(survival, price)
  best = max(
    value - price * m for m, value in enumerate(best_by_count(survival))
  )
  assert saved(survival, found) - price * len(found) == best
  assert found == sorted(set(found)) and all(
    0 < s < len(weights) for s in found
  )


@settings(derandomize=True, deadline=None, max_examples=200)
@given(WEIGHTS, st.integers(0, 60), st.data())
def test_nothing_is_worth_more_at_the_price_with_a_true_cost(w, price, data):
  """Steps that cost nothing are among them."""
  paid = data.draw(st.lists(st.integers(0, 5), min_size=9, max_size=9))
  survival, cost = survival_of(w), np.cumsum([0, *paid])[: len(w)]
  found = solve_priced(survival, price, cost.astype(np.float64))
  best = max(
    value - price * m for m, value in enumerate(best_by_count(survival, cost))
  )
  assert saved(survival, found, cost) - price * len(found) == best
  assert len({cost[s] for s in found}) == len(found)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
  st.lists(st.integers(0, 50), min_size=40, max_size=40).filter(any),
  st.integers(1, 900),
)
def test_as_many_states_are_placed_no_better_by_the_exact_solver(w, price):
  survival = survival_of(w)
  found = solve_priced(survival, price)
  exact = solve_placement(np.array(w), len(found))
  total = int(np.array(w) @ np.arange(40))
  assert total - int(exact.objective) == saved(survival, found)


def test_a_higher_price_never_buys_more():
  rng = np.random.default_rng(0)
  survival = survival_of(rng.integers(0, 9, 100))
  counts = [len(solve_priced(survival, price)) for price in range(0, 5000, 50)]
  assert counts == sorted(counts, reverse=True)
  assert counts[0] > 80 and counts[-1] < 10


def price_of(survivals, budget, **options):
  return common_price([Steps.under(s) for s in survivals], budget, **options)


def spent(entries, price):
  """States and savings where every entry of a sample pays its price."""
  found = [solve_priced(s, price.of(n)) for n, s in enumerate(entries)]
  return sum(map(len, found)), sum(map(saved, entries, found))


def best_allocation(entries, states):
  """The most that so many states save, by every way to split them up."""
  best = np.full(states + 1, -np.inf)
  best[0] = 0.0
  for survival in entries:
    curve = best_by_count(survival)
    best = np.array(
      [
        max(best[n - m] + curve[m] for m in range(min(n + 1, len(curve))))
        for n in range(states + 1)
      ]
    )
  return np.maximum.accumulate(best)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(WEIGHTS, min_size=1, max_size=5), st.integers(0, 12))
def test_a_single_price_is_the_best_allocation(samples, states):
  """At either price, what the sample keeps is the best use of as many."""
  entries = [survival_of(weights) for weights in samples]
  price = price_of(entries, states / len(entries))
  for same in (price.low, price.high):
    kept, gained = spent(entries, price._replace(low=same, high=same))
    assert gained == best_allocation(entries, kept)[kept]
    assert kept <= states or same == price.low


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_equal_entries_share_a_budget_that_no_price_splits(budget):
  survival = survival_of([0, 4, 4, 4])
  price = price_of([survival] * 40, budget)
  assert price.share == pytest.approx(budget)
  kept, _ = spent([survival] * 4000, price)
  assert kept == pytest.approx(4000 * budget, rel=0.05)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("tenants", [2, 3, 8, 64])
def test_every_tenant_gets_the_same_share(tenants, share):
  """Whichever way the numbers of a tenant follow each other."""
  price = CommonPrice(1.0, 2.0, share)
  kept = [
    np.mean([price.of(n) == 1.0 for n in range(first, 2**16, tenants)])
    for first in range(tenants)
  ]
  np.testing.assert_allclose(kept, share, atol=0.05)
  assert np.mean(kept) == pytest.approx(share, abs=0.005)


def test_a_budget_beyond_use_costs_nothing():
  entries = [survival_of([0, 4, 0, 4])] * 3
  for start in (None, 0.0, 1.0):
    assert price_of(entries, 2, start=start) == (0.0, 0.0, 0.0)
  assert spent(entries, price_of(entries, 2))[0] == 6


def test_entries_without_any_use():
  assert price_of([survival_of([5, 0, 0])], 1) == (0.0, 0.0, 0.0)
  assert price_of([survival_of([5, 3, 1])], 0).share == 0.0


def test_entries_that_are_never_shared_leave_the_budget_to_others():
  idle, busy = survival_of([0, 0, 0, 1e-3]), survival_of([0, 5, 0, 9])
  price = price_of([idle, busy], 1.0)
  assert [solve_priced(s, price.high) for s in (idle, busy)] == [[], [1, 3]]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
  st.lists(WEIGHTS, min_size=1, max_size=5),
  st.integers(0, 12),
  st.floats(1e-9, 1e9),
)
def test_where_the_search_begins_decides_nothing(samples, states, start):
  entries = [survival_of(weights) for weights in samples]
  price = price_of(entries, states / len(entries))
  assert price_of(entries, states / len(entries), start=start) == price


def test_a_search_that_begins_at_the_price_takes_two_tries():
  rng = np.random.default_rng(0)
  entries = [survival_of(rng.random(50)) for _ in range(20)]
  price, solved = price_of(entries, 2), []
  again = price_of(
    entries, 2, start=price.low * 1.01, pause=lambda: solved.append(1)
  )
  assert again == price and len(solved) <= 40


FALLING, STEPS = np.array([4.0, 4.0, 1.0]), Steps.under(np.array([4.0, 1.0]))


@pytest.mark.parametrize(
  "call, sentence",
  [
    (lambda: solve_priced(None, 1.0), "survival must be one-dimensional"),
    (lambda: solve_priced(FALLING[::-1], 1.0), "survival must be finite and"),
    (lambda: solve_priced(FALLING, "1"), "price is '1'; it must be a number"),
    (lambda: solve_priced(FALLING, float("nan")), "price is nan"),
    (lambda: solve_priced(FALLING, 1.0, [0, 1]), "cost must have one value"),
    (lambda: common_price([], 1), r"entries is \[\]; it must be a list of"),
    (lambda: common_price([FALLING], 1), "entries: an entry is array"),
    (lambda: common_price([STEPS], -1), "budget is -1; it must be a number"),
    (lambda: common_price([STEPS], None), "budget is None"),
    (lambda: common_price([STEPS], 1, start="1"), "start is '1'; it must be"),
  ],
)
def test_what_is_no_problem_is_refused(call, sentence):
  with pytest.raises(ValueError, match=sentence):
    call()


def test_whole_numbers_and_lists_are_problems_too():
  assert solve_priced(FALLING.astype(np.uint8), 1) == solve_priced(FALLING, 1.0)
  assert solve_priced([4, 4, 1], 1) == solve_priced(FALLING, 1.0)
