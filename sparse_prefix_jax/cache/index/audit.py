"""Recounts an index from scratch: what its tests call after every step."""

import collections
from collections.abc import Collection, Iterable, Sequence

from .chain import Chain, Need
from .eviction import EvictionRule
from .forest import Forest
from .ledger import Numbers
from .remembered import Remembered, entry_bytes, node_bytes
from .results import Pin
from .tree import Node, nodes_below


def audit(forest: Forest, rule: EvictionRule, pins: Collection[Pin]) -> None:
  """Compares trees, states, entries, pins and numbers with one another.

  Raises:
    AssertionError: One sentence on the first thing that does not add up.
  """
  nodes = [node for root in forest.roots.values() for node in nodes_below(root)]
  ledger = forest.ledger
  slots, pages = ledger.slots, ledger.pages
  fits = ledger.budget.fits(slots.held, pages.held)
  _require(fits, "more is held than allowed")
  _audit_numbers(pages, [node.page for node in nodes if node.page >= 0])
  _audit_numbers(slots, [n.state.number for n in nodes if n.state])
  _audit_roots(forest)
  _audit_shape([*forest.roots.values(), *nodes])
  _audit_states(nodes, rule)
  held = {node.state for node in nodes if node.state}
  _require(held == forest.all_states, "the forest knows other states")
  _audit_pins(nodes, pins, slots, pages)
  _audit_entries(forest, nodes)
  _audit_memory(forest.remembered, [*forest.roots.values(), *nodes])


def _require(truth: bool, complaint: str) -> None:
  """Raises AssertionError with the complaint unless it holds."""
  if not truth:
    raise AssertionError(f"prefix index: {complaint}.")


def _audit_numbers(numbers: Numbers, owned: Sequence[int]) -> None:
  """Every number given out is owned once, leased, or free, and only that."""
  places = collections.Counter([*owned, *numbers.leased, *numbers.free])
  twice = sorted(number for number, count in places.items() if count > 1)
  _require(not twice, f"{numbers.kind}s {twice} are in two places")
  given_out = numbers.held + len(numbers.free)
  _require(
    sorted(places) == list(range(given_out)),
    f"of {given_out} {numbers.kind}s, {len(places)} are accounted for",
  )


def _audit_roots(forest: Forest) -> None:
  """Every salt has a tree with something in it, without page or state."""
  for salt, root in forest.roots.items():
    _require(root.key == salt, f"the root of salt {salt!r} has another key")
    _require(root.needed, f"the tree of salt {salt!r} is empty")
    bare = root.depth == 0 and root.page < 0 and root.state is None
    _require(bare, "a root holds a page or a state")


def _audit_shape(nodes: Iterable[Node]) -> None:
  """Parents, depths and sorted edges agree, and nothing is there in vain."""
  for node in nodes:
    _require(node.needed, f"nobody needs a node at depth {node.depth}")
    for key, child in node.children.items():
      linked = child.parent is node and child.key == key
      linked = linked and node.first is next(iter(node.children.values()))
      _require(linked and child.depth == node.depth + 1, "a child hangs wrong")
      _require(_is_chained(child), "a node is not where its chain has it")
    keys = [key for key in node.children if isinstance(key, bytes)]
    edges = sorted([*keys, *node.ends])
    kept = node.sorted_edges
    _require(kept is None or kept == edges, "edges are not in order")


def _is_chained(node: Node) -> bool:
  """Whether a node stands in its chain, as deep as it is."""
  if node.chain is None or node.depth < node.chain.depth:
    return False
  place = node.depth - node.chain.depth
  return node.chain.nodes[place : place + 1] == [node]


def _audit_states(nodes: Sequence[Node], rule: EvictionRule) -> None:
  """States are where the rule knows them; pages are where states need them."""
  stored = [node.state for node in nodes if node.state]
  same = len(stored) == len(rule) and set(stored) == set(rule)
  _require(same, "the trees and the rule know different states")
  _require(all(s.node.state is s for s in stored), "a state is elsewhere")
  _audit_ends(nodes, [state.node for state in stored], "states")
  for node in nodes:
    paged = node.page >= 0
    _require(paged == node.needs_page, "a page is kept in vain, or missing")


def _audit_entries(forest: Forest, nodes: Sequence[Node]) -> None:
  """Entries and ends name one another, and claims lie on the path."""
  everything = [*forest.roots.values(), *nodes]
  ends = [entry for node in everything for entry in node.ends.values()]
  known = set(forest.remembered)
  same = len(ends) == len(known) and set(ends) == known
  _require(same, "the trees and the memory know different entries")
  for node in nodes:
    gone = node.latest is not None and node.latest not in known
    _require(not gone, "a node remembers an entry that is gone")
  for entry in known:
    path = {node.depth: node for node in entry.node.upwards()}
    _require(entry.node.ends.get(entry.tail) is entry, "an entry ends wrong")
    _require(entry.count > 0, "an entry belongs to nobody")
    claims = ((d, s) for d, s in entry.claims.items() if s.alive)
    on_path = all(path.get(d) is s.node for d, s in claims)
    _require(on_path, "an entry claims a state off its path")


def _audit_pins(
  nodes: Sequence[Node], pins: Collection[Pin], slots: Numbers, pages: Numbers
) -> None:
  """The counts of pins on chains and states follow from the open pins."""
  ends = [pin.node for pin in pins if pin.node]
  held = collections.Counter(pin.state for pin in pins if pin.state)
  passing = {node for end in ends for node in end.upwards()}
  _require(passing <= set(nodes), "a pinned node is gone")
  _require(all(state.alive for state in held), "a pinned state is gone")
  _audit_ends(nodes, ends, "pins")
  counts = [(n.state.pins, held[n.state]) for n in nodes if n.state]
  _require(all(a == b for a, b in counts), "a state miscounts pins")
  _require(pages.pinned == len(passing), "pinned pages are miscounted")
  _require(slots.pinned == len(held), "pinned slots are miscounted")


def _audit_ends(
  nodes: Sequence[Node], ends: Sequence[Node], need: Need
) -> None:
  """Chains know where something ends in them, or goes on to another chain."""
  chains = {node.chain for node in nodes if node.chain}
  passing = {node for end in ends for node in end.upwards()}
  branches = {c: c.nodes[0].parent for c in chains if c.nodes[0] in passing}
  counted: dict[Chain, list[int]] = {chain: [] for chain in chains}
  for node in [*ends, *branches.values()]:
    if node and node.chain:
      counted[node.chain].append(node.depth - node.chain.depth)
  known = {chain: [*getattr(chain, need)] for chain in chains}
  right = known == {chain: sorted(places) for chain, places in counted.items()}
  _require(right, f"a chain miscounts its {need}")


def _audit_memory(remembered: Remembered, nodes: Sequence[Node]) -> None:
  """The bytes of entries and of nodes without a page add up."""
  entries = sum(entry_bytes(entry) for entry in remembered)
  bare = sum(node_bytes(node) for node in nodes if node.page < 0)
  _require(remembered.bytes == entries + bare, "host memory is miscounted")
  within = remembered.bytes <= remembered.limit or not len(remembered)
  _require(within, "more is remembered than allowed")
