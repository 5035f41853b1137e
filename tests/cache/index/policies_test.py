"""Who goes first."""

import pytest

from sparse_prefix_jax.cache.index import POLICIES, EvictionPolicy
from sparse_prefix_jax.cache.index.policies import make_policy
from sparse_prefix_jax.cache.index.tree import Entry, Node


def filled(name):
  policy = make_policy(name)
  entries = [Entry(Node(), b"", bytes([i])) for i in range(3)]
  for entry in entries:
    policy.add(entry)
  return policy, entries


@pytest.mark.parametrize(("name", "first"), [("fifo", 0), ("lru", 1)])
def test_a_use_counts_for_lru_only(name, first):
  policy, entries = filled(name)
  policy.touch(entries[0])
  assert policy.victim(lambda entry: False) is entries[first]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_the_rules_that_all_policies_share(name):
  policy, (a, b, c) = filled(name)
  assert isinstance(policy, EvictionPolicy)
  assert list(policy) == [a, b, c] and len(policy) == 3
  policy.add(a)
  assert list(policy) == [b, c, a]
  assert policy.victim(lambda entry: entry is b) is c
  assert policy.victim(lambda entry: True) is b
  policy.remove(b)
  assert b not in policy and a in policy and len(policy) == 2


def test_an_unknown_policy_is_refused():
  with pytest.raises(ValueError, match="one of fifo, lru, got 'mru'"):
    make_policy("mru")
