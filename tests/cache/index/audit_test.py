"""The audit sees damage of every kind."""

import pytest

from sparse_prefix_jax.cache.index import Budget, PrefixIndex


def small_index():
  index = PrefixIndex(Budget(1000, slot_bytes=10, page_bytes=1))
  lease = index.reserve(2, 4)
  index.insert("abc", b"", lease.pages[:3], {2: lease.slots[0]})
  index.insert("ab", b"t", lease.pages[:2], {}, claim=(2,))
  pin = index.pin("abc", 2)
  node = pin.node
  assert node is not None
  index.check()
  return index, node


def lose_a_child(index, node):
  node.children.clear()


def lose_an_end(index, node):
  node.ends.clear()


def lose_a_claim(index, node):
  node.slot.claims.popitem()


def lose_a_slot(index, node):
  node.slot = None


def swap_a_page(index, node):
  node.page = node.parent.page


def free_a_page(index, node):
  index._ledger.pages.give_back([node.page])


def lease_an_owned_page(index, node):
  index._ledger.pages.leased.add(node.page)


def miscount_pins(index, node):
  node.pins += 1


def miscount_slot_pins(index, node):
  node.slot.pins += 1


def miscount_pinned_pages(index, node):
  index._ledger.pages.pinned += 1


def hang_wrong(index, node):
  node.depth += 1


def forget_an_entry(index, node):
  index._policy.remove(index.entries[0])


def remember_a_dead_entry(index, node):
  dead = index.entries[1]
  index.evict(dead)
  node.latest = dead


def disorder_the_edges(index, node):
  node.fringe.reverse()
  node.fringe.append(b"zz")


def keep_an_empty_salt(index, node):
  index._roots[b"other"] = type(node)(key=b"other")


def shrink_the_budget(index, node):
  index._ledger.budget = Budget(1, slot_bytes=10, page_bytes=1)


DAMAGE = [
  lose_a_child,
  lose_an_end,
  lose_a_claim,
  lose_a_slot,
  swap_a_page,
  free_a_page,
  lease_an_owned_page,
  miscount_pins,
  miscount_slot_pins,
  miscount_pinned_pages,
  hang_wrong,
  forget_an_entry,
  remember_a_dead_entry,
  disorder_the_edges,
  keep_an_empty_salt,
  shrink_the_budget,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen(damage):
  index, node = small_index()
  damage(index, node)
  with pytest.raises(AssertionError, match="prefix index: "):
    index.check()
