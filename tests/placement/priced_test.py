import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_prefix_jax.placement import (
  common_price,
  solve_placement,
  solve_priced,
)

WEIGHTS = st.lists(st.integers(0, 9), min_size=2, max_size=9).filter(any)


def survival_of(weights):
  return np.cumsum(np.array(weights, np.float64)[::-1])[::-1]


def saved(survival, positions):
  """The staircase under G, as the module docstring has it."""
  edges = [0, *positions]
  return sum((s - r) * survival[s] for r, s in itertools.pairwise(edges))


def best_by_count(survival):
  """The most that 0, 1, 2, ... states save, by trying every subset."""
  depths = range(1, survival.size)
  return [
    max(saved(survival, chosen) for chosen in itertools.combinations(depths, m))
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
  price = common_price(entries, states / len(entries))
  for same in (price.low, price.high):
    kept, gained = spent(entries, price._replace(low=same, high=same))
    assert gained == best_allocation(entries, kept)[kept]
    assert kept <= states or same == price.low


@pytest.mark.parametrize("budget", [0.25, 0.5, 1.0, 2.5])
def test_equal_entries_share_a_budget_that_no_price_splits(budget):
  entries = [survival_of([0, 4, 4, 4])] * 40
  kept, _ = spent(entries, common_price(entries, budget))
  assert kept == 40 * budget


def test_a_budget_beyond_use_costs_nothing():
  entries = [survival_of([0, 4, 0, 4])] * 3
  assert common_price(entries, 2) == (0.0, 0.0, 0.0)
  assert spent(entries, common_price(entries, 2))[0] == 6


def test_entries_that_are_never_shared_leave_the_budget_to_others():
  idle, busy = survival_of([0, 0, 0, 1e-3]), survival_of([0, 5, 0, 9])
  price = common_price([idle, busy], 1.0)
  assert [solve_priced(s, price.high) for s in (idle, busy)] == [[], [1, 3]]
