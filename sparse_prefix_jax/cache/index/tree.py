"""The prefix tree: one node per distinct prefix of whole blocks.

A node is a page. It lives while a child, an entry or a pin needs it, and its
state slot while an entry claims it or a pin holds it, so pages and slots that
entries share exist, and count, once. Nothing here recurses: a prompt may have
thousands of blocks.
"""

import bisect
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Sequence

from sparse_prefix_jax.placement import Features


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class StateSlot:
  """A state checkpoint at a node.

  Attributes:
    number: its number in the pools.
    claims: entries that keep it alive, in order of claiming.
    pins: open pins that keep it alive.
  """

  number: int
  claims: "dict[Entry, None]" = dataclasses.field(default_factory=dict)
  pins: int = 0

  @property
  def needed(self) -> bool:
    """Whether an entry or a pin still needs it."""
    return bool(self.claims) or self.pins > 0


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Node:
  """A prefix of `depth` whole blocks; a root has depth 0 and no page.

  Attributes:
    key: the last block's key.
    parent: the prefix one block shorter; None for a root.
    depth: blocks of the prefix.
    page: number of the last block's page.
    slot: the state checkpoint after the prefix, if one is kept.
    children: prefixes one block longer, by key.
    ends: entries without a further whole block, by tail.
    pins: open pins that pass through or end here.
    latest: the entry inserted last through here, None once it is gone.
    sorted_edges: what `fringe` returns, once somebody has asked.
  """

  key: Hashable = None
  parent: "Node | None" = None
  depth: int = 0
  page: int = -1
  slot: StateSlot | None = None
  children: "dict[Hashable, Node]" = dataclasses.field(default_factory=dict)
  ends: "dict[bytes, Entry]" = dataclasses.field(default_factory=dict)
  pins: int = 0
  latest: "Entry | None" = None
  sorted_edges: list[bytes] | None = None

  @property
  def needed(self) -> bool:
    """Whether a child, an entry or a pin still needs the node."""
    return bool(self.children) or bool(self.ends) or self.pins > 0

  @property
  def fringe(self) -> list[bytes]:
    """Sorted keys of the children and tails that end here, bytes only.

    Sorted when it is first asked for, and kept in order from then on.
    """
    if self.sorted_edges is None:
      keys = (key for key in self.children if isinstance(key, bytes))
      self.sorted_edges = sorted([*keys, *self.ends])
    return self.sorted_edges

  def add_edge(self, key: Hashable) -> None:
    """Notes a new child's key or a new tail in the sorted fringe."""
    if self.sorted_edges is not None and isinstance(key, bytes):
      bisect.insort(self.sorted_edges, key)

  def drop_edge(self, key: Hashable) -> None:
    """Takes a key or tail out of the sorted fringe."""
    if self.sorted_edges is not None and isinstance(key, bytes):
      del self.sorted_edges[bisect.bisect_left(self.sorted_edges, key)]

  def upwards(self) -> "Iterator[Node]":
    """The node and its ancestors that have a page, deepest first."""
    node = self
    while node.parent is not None:
      yield node
      node = node.parent


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Entry:
  """A stored prompt; compared by identity, and a handle for `replace`.

  Attributes:
    node: its last whole block (a root if it has none).
    salt: the tenant that it belongs to.
    tail: key of the tokens after the last whole block.
    claims: the nodes whose state slots it keeps alive, by depth in blocks.
    features: what the placement knows of it, None where nobody said.
  """

  node: Node
  salt: bytes
  tail: bytes
  claims: dict[int, Node] = dataclasses.field(default_factory=dict)
  features: Features | None = None

  @property
  def depth(self) -> int:
    """Whole blocks of the entry."""
    return self.node.depth

  @property
  def blocks(self) -> tuple[Hashable, ...]:
    """Keys of the whole blocks."""
    return tuple(node.key for node in self.node.upwards())[::-1]

  def __repr__(self) -> str:
    """Short enough for a message."""
    return f"Entry({self.depth} blocks, {len(self.tail)} bytes of tail)"


def walk(root: Node | None, blocks: Sequence[Hashable]) -> list[Node]:
  """Nodes of the deepest stored prefix of `blocks`, shallowest first.

  >>> root = Node()
  >>> _ = extend(root, ["a", "b"], [7, 8])
  >>> [node.page for node in walk(root, ["a", "b", "c"])]
  [7, 8]
  """
  path: list[Node] = []
  for key in blocks:
    root = root.children.get(key) if root else None
    if root is None:
      break
    path.append(root)
  return path


def extend(
  node: Node, keys: Iterable[Hashable], pages: Iterable[int]
) -> list[Node]:
  """Adds one node per key below `node`, each the child of the one before."""
  path: list[Node] = []
  for key, page in zip(keys, pages):
    child = Node(key=key, parent=node, depth=node.depth + 1, page=page)
    node.children[key] = child
    node.add_edge(key)
    path.append(child)
    node = child
  return path


def prune(node: Node) -> tuple[list[int], Node]:
  """Removes the node and its ancestors as far as nobody needs them.

  Returns:
    the page numbers that became free, and the deepest ancestor that stays or
    the root. No removed node holds a slot: who claimed or pinned it needed
    the node as well.
  """
  pages: list[int] = []
  while node.parent is not None and not node.needed:
    pages.append(node.page)
    parent = node.parent
    del parent.children[node.key]
    parent.drop_edge(node.key)
    node = parent
  return pages, node


def nodes_below(root: Node) -> Iterator[Node]:
  """Every node below a root, in no particular order."""
  waiting = list(root.children.values())
  while waiting:
    node = waiting.pop()
    yield node
    waiting.extend(node.children.values())
