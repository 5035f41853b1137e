"""The audit finds what it is there to find."""

import pytest

from sparse_prefix_jax.cache.index import PrefixIndex
from tests.cache.index.short_prompts import ROOMY, begin, store


def lived_in():
  index = PrefixIndex(ROOMY)
  store(index, range(12), depths=(2, 3))
  store(index, [*range(8), 9, 9, 9, 9, 5])
  begin(index, [*range(4), 7, 7, 7, 7], depths=(2,))
  index.check()
  return index


def break_page(index):
  index.states[0].node.page += 1


def break_slot(index):
  index.states[0].number += 1


def break_pins(index):
  next(iter(index._pins)).node.chain.pins += (0,)


def break_state_pins(index):
  next(iter(index._pins)).state.pins += 1


def break_states(index):
  index.states[0].node.chain.states = ()


def break_rule(index):
  index._order.rule.remove(index.states[0])


def break_edges(index):
  node = index.states[0].node
  node.sorted_edges = [b"stray"]


def break_entry(index):
  index.entries[0].node.ends.clear()


def break_latest(index):
  index.states[0].node.latest = type(index.entries[0])(
    index.states[0].node, b"", b""
  )


def break_count(index):
  index.entries[0].count = 0


def break_memory(index):
  index._remembered.bytes += 1


def break_leases(index):
  index._ledger.slots.leased.add(index.states[0].number)


def break_depth(index):
  index.states[0].node.depth += 1


def break_chain(index):
  index.states[0].node.chain.nodes.reverse()


def break_salt(index):
  index._forest.roots[b"other"] = index._forest.roots.pop(b"")


@pytest.mark.parametrize(
  "fault", [f for name, f in sorted(globals().items()) if name[:6] == "break_"]
)
def test_a_fault_is_found(fault):
  index = lived_in()
  fault(index)
  with pytest.raises(AssertionError, match="prefix index: "):
    index.check()
