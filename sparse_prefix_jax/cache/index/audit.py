"""Recounts an index from scratch: what its tests call after every step."""

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence

from .ledger import Ledger, Numbers
from .results import Pin
from .tree import Entry, Node, nodes_below


def audit(
  ledger: Ledger,
  roots: Mapping[bytes, Node],
  entries: Sequence[Entry],
  pins: Collection[Pin],
) -> None:
  """Compares tree, entries, pins and free numbers with one another.

  Raises:
    AssertionError: one sentence on the first thing that does not add up.
  """
  nodes = [node for root in roots.values() for node in nodes_below(root)]
  budget, slots, pages = ledger.budget, ledger.slots, ledger.pages
  _require(budget.fits(slots.held, pages.held), "more is held than allowed")
  _require(len(entries) <= budget.entries, "too many entries are stored")
  _audit_numbers(pages, [node.page for node in nodes])
  _audit_numbers(slots, [n.slot.number for n in nodes if n.slot])
  _audit_roots(roots)
  _audit_shape([*roots.values(), *nodes])
  _audit_entries(roots, nodes, entries)
  _audit_pins(nodes, pins, slots, pages)


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


def _audit_roots(roots: Mapping[bytes, Node]) -> None:
  """Every salt has a tree with something in it, without page or slot."""
  for salt, root in roots.items():
    _require(root.key == salt, f"the root of salt {salt!r} has another key")
    _require(root.needed, f"the tree of salt {salt!r} is empty")
    bare = root.depth == 0 and root.page < 0 and root.slot is None
    _require(bare, "a root holds a page or a slot")


def _audit_shape(nodes: Iterable[Node]) -> None:
  """Parents, depths and sorted edges agree, and nothing is there in vain."""
  for node in nodes:
    _require(node.needed, f"nobody needs a node at depth {node.depth}")
    for key, child in node.children.items():
      linked = child.parent is node and child.key == key
      _require(linked and child.depth == node.depth + 1, "a child hangs wrong")
    keys = [key for key in node.children if isinstance(key, bytes)]
    edges = sorted([*keys, *node.ends])
    kept = node.sorted_edges
    _require(kept is None or kept == edges, "edges are not in order")
    _require(not node.slot or node.slot.needed, "nobody needs a slot")


def _audit_entries(
  roots: Mapping[bytes, Node], nodes: Sequence[Node], entries: Sequence[Entry]
) -> None:
  """Entries, ends and claims name one another, and nothing else does."""
  ends = [e for n in (*roots.values(), *nodes) for e in n.ends.values()]
  same = len(ends) == len(entries) and set(ends) == set(entries)
  _require(same, "the tree and the policy know different entries")
  claims = {(e, n) for n in nodes if n.slot for e in n.slot.claims}
  _require(
    claims == {(e, n) for e in entries for n in e.claims.values()},
    "slots and entries disagree on who claims what",
  )
  known = set(entries)
  for entry in entries:
    path = {node.depth: node for node in entry.node.upwards()}
    root = min(path.values(), key=lambda n: n.depth).parent if path else None
    _require((root or entry.node) is roots.get(entry.salt), "an entry is lost")
    _require(entry.node.ends.get(entry.tail) is entry, "an entry ends wrong")
    _require(
      all(n.latest is None or n.latest in known for n in path.values()),
      "a node remembers an entry that is gone",
    )
    on_path = all(path.get(d) is n for d, n in entry.claims.items())
    _require(on_path, "an entry claims a slot off its path")


def _audit_pins(
  nodes: Sequence[Node], pins: Collection[Pin], slots: Numbers, pages: Numbers
) -> None:
  """The counts of pins on nodes and slots follow from the open pins."""
  ends = [pin.node for pin in pins if pin.node]
  passing = collections.Counter(n for end in ends for n in end.upwards())
  at_slot = collections.Counter(p.node for p in pins if p.node and p.holds_slot)
  _require(set(passing) <= set(nodes), "a pinned node is gone")
  for node in nodes:
    _require(node.pins == passing[node], "a node miscounts its pins")
    held = node.slot.pins if node.slot else 0
    _require(held == at_slot[node], "a slot miscounts its pins")
  _require(pages.pinned == len(passing), "pinned pages are miscounted")
  _require(slots.pinned == len(at_slot), "pinned slots are miscounted")
